"""The package that runs a mesh on this machine, for the commands that need it.

It is imported when such a command runs: whoever only talks to a gateway need not have it.
"""

from typing import TYPE_CHECKING

from millrace_client.errors import MeshNotInstalled, MillraceError
from millrace_client.home import Home

if TYPE_CHECKING:
    from millrace_mesh.control import Running
    from millrace_mesh.layout import Layout


class MeshError(MillraceError):
    """The mesh on this machine could not be started, stopped or asked."""


def layout() -> "Layout":
    """The mesh that the environment describes.

    Raises:
        MeshNotInstalled: millrace-mesh is not here.
        MeshError: the environment describes an impossible one.
    """
    try:
        from millrace_mesh.layout import LayoutError, layout_from_environ
    except ImportError as error:
        raise MeshNotInstalled from error
    try:
        return layout_from_environ()
    except LayoutError as error:
        raise MeshError(str(error)) from error


def find(home: Home) -> "Running | None":
    """The mesh that runs in ``home``, if one does.

    Raises:
        MeshNotInstalled: millrace-mesh is not here.
    """
    try:
        from millrace_mesh import control
    except ImportError as error:
        raise MeshNotInstalled from error
    return control.find(home)
