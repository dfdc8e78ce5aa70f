"""Official downloads (NYUv2, KITTI, CamVid, ADE20K, Cityscapes), recordings of depth cameras -> folders to read."""
