"""hdx turns one photo of a person into an animatable 3D Gaussian avatar."""

__version__ = "0.1.0"
