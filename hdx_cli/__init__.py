"""hdx turns one photo of a person into an animatable 3D Gaussian avatar.

The verbs of the command line can be imported from here: ``from hdx_cli import create, animate, export_files``; see ``api``.
"""

__version__ = "0.1.0"


VERBS = ("check", "create", "fit_coarse", "restore", "refine", "render", "animate", "export_files")


def __getattr__(name: str):
    # importing the package alone must load nothing, nor must looking for a module in it
    if name in VERBS:
        from importlib import import_module

        return getattr(import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
