"""Official downloads (NYUv2, KITTI) -> folders that the package reads."""
