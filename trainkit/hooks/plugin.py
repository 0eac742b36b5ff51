"""The base class of every plugin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict, PrivateAttr

from trainkit.errors import Problem, RecipeError
from trainkit.seeds import derive_seed

if TYPE_CHECKING:
    import torch

    from trainkit.hooks.run import Run
    from trainkit.hooks.section import Section
    from trainkit.log.history import History


class Plugin(BaseModel):
    """A training technique: options as pydantic fields, behaviour as hook implementations.

    Subclass it, declare options as annotated fields (that is the only place: command-line help,
    JSON schema and docs are derived from them) and mark methods named as in `trainkit.Hooks` with
    `@hookimpl`. Keep state in private attributes (`_name: T = PrivateAttr(...)`) and return it from
    `state_dict`, or it is lost on resume.

    Plugins are compared by identity: two with equal options are two plugins.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )

    citation: ClassVar[str] = ""
    """BibTeX of the paper, printed by `trainkit cite`."""
    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Options under which a run equals one without the plugin, bit for bit (`{}` for a monitor)."""
    before: ClassVar[tuple[str, ...]] = ()
    """Plugins that must come later than this one, whatever the recipe's order."""
    after: ClassVar[tuple[str, ...]] = ()
    """Plugins that must come earlier than this one."""
    conflicts: ClassVar[Mapping[str, str]] = {}
    """Plugins that cannot be on at the same time, each with the reason."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Plugins that must be on for this one to work."""
    hookspecs: ClassVar[type | None] = None
    """A class of hook specifications that this plugin publishes for others."""
    known_failures: ClassVar[Mapping[str, str]] = {}
    """Conformance checks that are known to fail, each with the reason (`trainkit.testing`)."""

    _name: str = PrivateAttr(default="")
    _seed: int = PrivateAttr(default=0)
    _generators: dict[str, torch.Generator] = PrivateAttr(default_factory=dict)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def bind(self, name: str, seed: int) -> None:
        """Tell the plugin its name in the recipe and the recipe's seed; the manager does this
        once.
        """
        self._name = name
        self._seed = seed

    @property
    def name(self) -> str:
        """The plugin's name in the recipe."""
        return self._name

    def refuse(
        self, run: Run, option: str | Sequence[str], why: str, *, section: str = ""
    ) -> NoReturn:
        """Refuse what the recipe asks for, with the file and line where it asks for it.

        Args:
            run: whose recipe it is.
            option: the option at fault, or several; empty: the plugin or section as a whole.
            why: what is wrong with it and what to do, in one line.
            section: of the recipe, where the fault is in no option of this plugin: `train.loss`,
                say. Default: the plugin's own.

        Raises:
            RecipeError: always: `file:line: plugins.NAME.option: why`.
        """
        raw = run.recipe.raw
        label = section or f"plugins.{self.name}"
        if section:
            place = tuple(section.split("."))
        else:
            place = ("plugins", _as_written(self.name, raw.locations))
        if isinstance(option, str):
            options = [option]
        else:
            options = list(option)
        keys = [(*place, name) for name in options if name] or [place]
        # Of several options the line is that of the first one written in the recipe.
        written = next((key for key in keys if key in raw.locations), keys[0])
        if any(options):
            label += "." + ", ".join(options)
        raise RecipeError([Problem(raw.nearest(*written), label, why)]) from None

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return this plugin's own random stream on `device`.

        It is seeded from (recipe seed, plugin name), the same on every rank, and is saved and
        restored with the run, so drawing from it never changes what anything else draws.
        """
        import torch

        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(
                derive_seed(self._seed, "plugin", self._name)
            )
        return self._generators[key]

    def generator_states(self) -> dict[str, torch.Tensor]:
        """Return the state of each random stream that has been used."""
        found: dict[str, torch.Tensor] = {}
        for key, generator in self._generators.items():
            found[key] = generator.get_state()
        return found

    def load_generator_states(self, states: dict[str, torch.Tensor]) -> None:
        """Put the random streams back; one that had not been used then begins anew."""
        for key in self._generators.keys() - states.keys():
            self._generators[key].manual_seed(derive_seed(self._seed, "plugin", self._name))
        for key, state in states.items():
            self.generator(key).set_state(state)

    @contextmanager
    def isolated_streams(self, *purpose: int | str) -> Iterator[None]:
        """While on, `generator` gives streams that belong to `purpose` alone; then the others go on
        where they were.

        The loop does so in validation: how often it happens does not change training.
        """
        kept, seed = self._generators, self._seed
        self._generators, self._seed = {}, derive_seed(seed, *purpose)
        try:
            yield
        finally:
            self._generators, self._seed = kept, seed

    def at_its_end(self, run: Run) -> str:
        """Return what this plugin, restored, has already done because training was at its end;
        empty: nothing.

        A run with a plugin that has cannot be made longer: one so long from the start would not
        have done it.
        """
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain containers and tensors. Default: nothing.

        It is asked for before the first step too, to see that it could be read back. Tensors must
        be finite; a Python number may be infinite, but not NaN.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned. Default: there is nothing to put back."""

    def explain(self, run: Run) -> list[str]:
        """Return lines for `trainkit plan`: what this plugin chose in this run, and why.
        Default: none.
        """
        return []

    def idle(self, run: Run) -> dict[str, str]:
        """Return options that never act in this run, each with the reason; an empty reason does not
        count.

        Core notes them before training, and `trainkit plan` shows them: an interval longer than the
        run, say, which `run.past_end` finds. Default: none.
        """
        return {}

    def report(self, history: History) -> list[Section]:
        """Return sections for `report.html`, made from what the run logged. Default: none."""
        return []


def _as_written(name: str, keys: Iterable[tuple[str | int, ...]]) -> str:
    """Return a plugin's key in the recipe: its name, or `FILE.py:NAME`."""
    for key in keys:
        if len(key) == 2 and key[0] == "plugins" and str(key[1]).endswith(f":{name}"):
            return str(key[1])
    return name
