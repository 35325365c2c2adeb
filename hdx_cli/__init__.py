"""hdx turns one photo of a person into an animatable 3D Gaussian avatar.

The verbs of the command line can be imported from here: ``from hdx_cli import create, animate, export_files``; see ``api``.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # importing the package alone must load nothing
    from importlib import import_module

    if name.startswith("_"):
        raise AttributeError(name)
    api = import_module(".api", __name__)
    if name in api.VERBS:
        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
