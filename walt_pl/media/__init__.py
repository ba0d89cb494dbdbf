"""Video and image files. No other package imports decord, PyAV or Pillow."""
