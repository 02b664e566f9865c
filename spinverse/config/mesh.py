"""The section mesh: a file, a builder, a closed surface or a segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, model_validator

from .. import mesh
from ..errors import InputError
from ..mesh import readers
from ..mesh.images import from_labels
from ..mesh.surfaces import SUFFIXES
from ..mesh.tetrahedralise import from_surface
from .arguments import arguments_of, chosen, keys_of, unknown
from .values import FilePath, KeyProblem, Section, exactly_one

BUILDERS: dict[str, Callable] = {
    function.__name__: function for function in (
        mesh.intervals, mesh.slabs, mesh.disks, mesh.spheres, mesh.cylinders, mesh.box,
        mesh.sphere_in_box, mesh.l_cell, mesh.bent_axon, mesh.twisted_axons, mesh.torus,
        mesh.packed_cylinders, mesh.packed_spheres, mesh.tagged_grid)}
SHAPES = {"ball": mesh.Ball, "cylinder": mesh.Cylinder, "bent_tube": mesh.BentTube,
          "torus": mesh.Torus}
SOURCES = ("file", "builder", "surface", "labels")


class MeshSection(Section):
    """One of ``file``, ``builder``, ``surface`` and ``labels``, with the arguments of it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    file: FilePath | None = None
    builder: Annotated[str, BeforeValidator(
        lambda value: chosen(value, BUILDERS, "one of the builders"))] | None = None
    surface: FilePath | None = None
    labels: FilePath | None = None
    repair: bool | None = None

    @model_validator(mode="after")
    def _fits(self):
        exactly_one(self, SOURCES)
        if self.repair is not None and not (self.file or self.surface):
            raise KeyProblem("repair", "expected it beside file or surface only")
        if self.file is None:
            self._arguments()
            return self
        for kind, what, suffixes in (("surface", "a surface", SUFFIXES),
                                     ("labels", "an image", (".npy", ".nii", ".nii.gz"))):
            if self.file.name.lower().endswith(suffixes):
                raise KeyProblem("file", f"{self.file} holds {what}, expected it as mesh.{kind}")
        for key in self._extra:
            raise KeyProblem(key, unknown(key, [*SOURCES, "repair"]))
        return self

    @property
    def source(self) -> Path | None:
        """The file that the mesh comes from, if it comes from one."""
        return self.file or self.surface or self.labels

    @property
    def could_be_periodic(self) -> bool:
        """Whether the builder has an argument periodic that is not given."""
        return self.builder is not None and not self._extra.get("periodic") \
            and "periodic" in keys_of(BUILDERS[self.builder])

    def make(self) -> mesh.MeshData:
        """Read or make the mesh; on one rank. Raises InputError, or SolverError of a mesher."""
        if self.file is not None:
            return readers.read(self.file, repair=bool(self.repair))
        arguments = self._arguments()
        try:
            if self.builder == "tagged_grid":
                kind, values = arguments["shape"]
                arguments["shape"] = kind(**values)
            return self._function()[0](**arguments)
        except InputError as error:
            raise InputError(f"mesh: {error}") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"mesh: {self.builder or 'surface or labels'}: {error}") from None

    @property
    def _extra(self) -> dict:
        return dict(self.model_extra or {})

    def _function(self) -> tuple[Callable, str]:
        """What makes the mesh, and the name of its first argument if that is the file."""
        if self.surface is not None:
            return from_surface, "surface"
        if self.labels is not None:
            return from_labels, "image"
        return BUILDERS[self.builder], "shape"

    def _arguments(self) -> dict:
        function, first = self._function()
        given = self._extra
        shape = given.pop("shape", None)
        if self.repair is not None:
            given["repair"] = self.repair
        if self.builder != "tagged_grid" and shape is not None:
            raise KeyProblem("shape", "expected it with builder tagged_grid only")
        arguments = arguments_of(function, given, leave_out=(first,))
        if self.builder == "tagged_grid":
            arguments["shape"] = _shape(shape)
        elif self.source is not None:
            arguments[first] = self.source
        return arguments


def _shape(value) -> tuple[type, dict]:
    """Class and arguments of the shape that a grid is tagged by."""
    if not isinstance(value, Mapping) or value.get("kind") not in SHAPES:
        raise KeyProblem("shape", f"{value!r:.60}, expected a mapping with kind: one of "
                         f"{', '.join(SHAPES)}, and its arguments")
    kind = SHAPES[value["kind"]]
    rest = {key: v for key, v in value.items() if key != "kind"}
    return kind, arguments_of(kind, rest, where="shape.")
