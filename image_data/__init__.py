"""Sources of images (generated shapes, image files, downloads), .npz files and image grids."""
