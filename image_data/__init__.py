"""Where images come from: generated shapes, image files, downloads; .npz files and image grids."""
