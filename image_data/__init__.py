"""Where images come from: drawn shapes, image files, downloads."""
