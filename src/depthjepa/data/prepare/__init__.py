"""Official downloads (NYUv2, KITTI, CamVid, ADE20K, Cityscapes) -> folders that the package reads."""
