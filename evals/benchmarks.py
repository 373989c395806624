"""Every split: what it is called, how many samples the published one has, and where the paper reports it.

Standard library only: ``visrl-eval ls`` must answer before anything heavy is imported. Sizes were counted in the
published files (docs/method.md b2 and c); a result with another n is *not comparable*.

Departures from what others run under these names:
1. ``pope`` is COCO's three splits, scored one by one and averaged (what papers report), not 9,000 pooled questions.
2. ``viscot`` is the 11 sets of the official aggregation; visual7w and emotic can be run but are in no average.
3. ``mmbench`` counts rows: 4,329 rotations of 1,164 questions. ``circular`` is an average over questions.
4. ``vstar`` shuffles its options, which its files list with the right one first (tasks/zoom.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from visrl.core.plugins import Registry
from visrl.errors import UsageError, nearest

Benchmark = Literal["rec", "viscot", "pope", "mme", "mmbench", "choice", "hrbench", "refl4", "point", "way"]
Unit = Literal["percent", "points", "fraction", "raw"]
UPSTREAM = "lmms:"
"""Before the names of lmms-eval's own tasks, whose metrics have the unit that their code gives them: ``raw``."""
UNITS: dict[Benchmark, Unit] = {
    "rec": "percent",
    "viscot": "fraction",
    "pope": "percent",
    "mme": "points",
    "mmbench": "percent",
    "choice": "percent",
    "hrbench": "percent",
    "refl4": "percent",
    "point": "percent",
    "way": "fraction",
}
PRIMARY: dict[Benchmark, str] = {
    "rec": "acc@0.5",
    "viscot": "answer",
    "pope": "f1",
    "mme": "perception",
    "mmbench": "circular",
    "choice": "accuracy",
    "hrbench": "accuracy",
    "refl4": "acc@0.5",
    "point": "click_acc",
    "way": "answer",
}
"""The metric that stands in the paper's tables. Which of POPE's the paper printed is not stated: F1 is an inference (b5)."""
Better = Literal["more", "less", "neither"]
LESS_IS_BETTER = frozenset({"faulty_calls"})
NEITHER_IS_BETTER = frozenset({"yes_ratio", "looks"})
"""How often yes is said and how often a model looks describe an answer and do not judge it. Their records, as those of
``LESS_IS_BETTER``, have ``higher_is_better: false``.
"""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task: a split of a benchmark.

    name: fixed, scripts rely on it. n: rows of the published split. n_pictures: distinct pictures, the clusters of the
    standard errors; None where the benchmark names none. version: changes when prompt, data or scoring change.
    unit: what values are reported in, the unit of the paper's table. paper: (table, column), if the paper reports it.
    judge_needed: free answers, so that ``answer`` depends on a judge. small_world: drawn by visrl, never comparable.
    aliases: other names :func:`resolve` understands. about: one line for ``visrl-eval ls``.
    """

    name: str
    benchmark: Benchmark
    n: int
    version: str = "1"
    n_pictures: int | None = None
    unit: Unit = "percent"
    paper: tuple[str, str] | None = None
    judge_needed: bool = False
    small_world: bool = False
    aliases: tuple[str, ...] = ()
    about: str = ""

    @property
    def primary(self) -> str:
        """The metric to watch, and the one the paper's table holds."""
        return PRIMARY[self.benchmark]

    @property
    def box_is_the_answer(self) -> bool:
        """Referring expressions: no answer is asked for besides the box."""
        return self.benchmark in ("rec", "refl4", "point")

    def unit_of(self, metric: str) -> Unit:
        """The unit of one of its metrics: MME's points are its own, a share of right answers is percent there, too."""
        return "percent" if self.unit == "points" and metric == "accuracy_careful" else self.unit


@dataclass(frozen=True, slots=True)
class Task:
    """A third party's task, as an entry point or ``visrl.register("task", …)`` names it. source: where its documents come from,
    a :class:`visrl.tasks.common.Source`.
    """

    spec: TaskSpec
    source: object


OFFERED_SOURCES: dict[str, object] = {}
"""Where the documents of third parties' tasks come from; of those that were looked up in :data:`TASKS`."""


def _third_party(name: str, found: Any) -> TaskSpec:
    if not isinstance(found, Task) or not isinstance(found.spec, TaskSpec):
        raise ValueError(f"not a visrl.tasks.Task(spec, source) but a {type(found).__name__}")
    if found.spec.name != name:
        raise ValueError(f"its spec is named {found.spec.name!r}")
    if found.spec.benchmark not in PRIMARY:
        raise ValueError(f"its benchmark {found.spec.benchmark!r} is none of {', '.join(PRIMARY)}")
    if found.spec.unit not in ("percent", "points", "fraction"):
        raise ValueError(f"its unit {found.spec.unit!r} is none of percent, points, fraction")
    OFFERED_SOURCES[name] = found.source
    return found.spec


def _reserved() -> list[str]:
    return [*GROUPS, *(alias for spec in TASKS.values() for alias in spec.aliases)]


TASKS: Registry[TaskSpec] = Registry("task", {}, _third_party, _reserved)
GROUPS: dict[str, tuple[str, ...]] = {}
RUN_BESIDE: dict[str, str] = {"world": "direct"}
"""Group -> the protocol that ``visrl-eval`` runs beside the model's own where the user names none: what looking is worth."""
_NO_MEAN = {"pope_all"}  # nine splits of three sources: nobody publishes that mean
_AVERAGED = {"viscot", "pope"}  # benchmarks whose splits the field averages


def register(*specs: TaskSpec, group: str | None = None) -> None:
    """Add tasks, and optionally the group of exactly these. Raises ValueError for a name that is taken."""
    for spec in specs:
        if TASKS.is_ours(spec.name):
            raise ValueError(f"the task name {spec.name!r} is taken")
        TASKS.own(spec.name, spec)
    if group is not None:
        if TASKS.is_ours(group):
            raise ValueError(f"the group name {group!r} is taken")
        GROUPS[group] = tuple(spec.name for spec in specs)


def has_mean(group: str) -> bool:
    """Whether the mean over a group's tasks is a number that the field reports: tasks of one averaged benchmark."""
    benchmarks = {TASKS[member].benchmark for member in GROUPS[group]}
    return len(benchmarks) == 1 and benchmarks <= _AVERAGED and group not in _NO_MEAN


def better_of(metric: str, higher_is_better: bool) -> Better:
    """Which change of a metric is for the better. higher_is_better: as its record has it."""
    if metric in NEITHER_IS_BETTER:
        return "neither"
    return "more" if higher_is_better else "less"


def resolve(names: Iterable[str]) -> list[TaskSpec]:
    """Tasks of the given names, groups expanded in order, each task once. A name may be a comma-separated list.

    Raises UsageError for an unknown name, with the nearest known one, and for no name at all.
    """
    if isinstance(names, str):
        names = (names,)
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    if not wanted:
        raise UsageError("no task given", "for example --tasks refcoco_val,pope")
    found: dict[str, TaskSpec] = {}
    for name in wanted:
        for member in _members(name):
            found[member] = TASKS[member]
    return list(found.values())


def _members(name: str) -> tuple[str, ...]:
    if name in GROUPS:
        return GROUPS[name]
    if name in TASKS:
        return (name,)
    for spec in TASKS.values():
        if name in spec.aliases:
            return (spec.name,)
    raise UsageError(f"unknown task {name!r}", nearest(name, [*GROUPS, *TASKS.names()]))


# rows, pictures: docs/method.md c
_REC = {
    "refcoco": {"val": (10834, 1500), "testA": (5657, 750), "testB": (5095, 750)},
    "refcoco+": {"val": (10758, 1500), "testA": (5726, 750), "testB": (4889, 750)},
    "refcocog": {"val": (4896, 1300), "test": (9602, 2600)},
}
# rows, pictures, the paper's column (None: not in its table): docs/method.md b2 and b5, in the poster's order
_VISCOT: dict[str, tuple[int, int, str | None]] = {
    "docvqa": (888, 617, "docvqa"),
    "textcap": (853, 755, "textcaps"),
    "textvqa": (526, 496, "textvqa"),
    "dude": (603, 492, "dude"),
    "sroie": (686, 322, "sroie"),
    "infographicsvqa": (360, 216, "infographicsvqa"),
    "flickr30k": (1546, 1255, "flickr30k"),
    "gqa": (978, 938, "gqa"),
    "openimages": (945, 889, "openimages"),
    "vsr": (404, 327, "vsr"),
    "cub": (492, 485, "cub"),
}
_VISCOT_EXTRA = {"visual7w": (1000, 900), "emotic": (656, 588)}
_POPE_SPLITS = ("random", "popular", "adversarial")


def _rec_specs(family: str) -> list[TaskSpec]:
    return [
        TaskSpec(
            f"{family}_{split}",
            "rec",
            n,
            n_pictures=pictures,
            paper=("rec", f"{family}_{split}"),
            about=f"referring expressions, {'UMD' if family == 'refcocog' else 'UNC'} split, one row per sentence",
        )
        for split, (n, pictures) in _REC[family].items()
    ]


def _viscot_spec(name: str, n: int, pictures: int, column: str | None) -> TaskSpec:
    about = "VisCoT benchmark" if column else "VisCoT benchmark, outside the official average"
    paper = ("viscot", column) if column else None
    aliases = (f"viscot_{column}",) if column and column != name else ()
    return TaskSpec(f"viscot_{name}", "viscot", n, "1", pictures, "fraction", paper, True, aliases=aliases, about=about)


def _pope_specs(source: str) -> list[TaskSpec]:
    about = f"is the object there? yes or no; {source} pictures"
    return [TaskSpec(f"pope_{source}_{split}", "pope", 3000, n_pictures=500, about=about) for split in _POPE_SPLITS]


def _register_published() -> None:
    for family in _REC:
        register(*_rec_specs(family), group=family)
    GROUPS["rec"] = tuple(name for family in _REC for name in GROUPS[family])
    register(*(_viscot_spec(name, *row) for name, row in _VISCOT.items()), group="viscot")
    register(*(_viscot_spec(name, *row, None) for name, row in _VISCOT_EXTRA.items()))
    register(*_pope_specs("coco"), group="pope")
    register(*_pope_specs("aokvqa"), group="pope_aokvqa")
    register(*_pope_specs("gqa"), group="pope_gqa")
    GROUPS["pope_all"] = GROUPS["pope"] + GROUPS["pope_aokvqa"] + GROUPS["pope_gqa"]
    old = "the older random split that published LLaVA answers use; in no group"
    register(TaskSpec("pope_coco_random_original", "pope", 2910, n_pictures=500, about=old))
    mme = "14 subtasks of yes/no pairs; perception and cognition totals"
    register(TaskSpec("mme", "mme", 2374, "1", 1187, "points", ("general", "mme_perception"), about=mme))
    mmbench = "English dev split: 1,164 questions in all rotations of their options"
    register(TaskSpec("mmbench", "mmbench", 4329, "2", paper=("general", "mmbench"), about=mmbench))


def _register_zoom() -> None:
    """Where zooming decides. Sizes as the benchmarks' own papers and pages have them; no file of theirs was seen here."""
    register(
        TaskSpec(
            "vstar",
            "choice",
            191,
            n_pictures=191,
            about="V*Bench: small things and their positions, with boxes",
        ),
        TaskSpec(
            "hrbench_4k", "hrbench", 800, about="HR-Bench, 4K pictures: 200 questions in four cycles of their options"
        ),
        TaskSpec(
            "hrbench_8k", "hrbench", 800, about="HR-Bench, 8K pictures: 200 questions in four cycles of their options"
        ),
        TaskSpec("treebench", "choice", 405, about="TreeBench: perception and reasoning, with target boxes"),
        TaskSpec("ref_l4", "refl4", 45341, about="Ref-L4: long referring expressions, val and test"),
        TaskSpec(
            "refcoco_m", "rec", 5598, n_pictures=1190, about="RefCOCO val with masks drawn anew, one row per sentence"
        ),
        TaskSpec("screenspot", "point", 1272, about="ScreenSpot: elements of screens, by a point or a box"),
        TaskSpec("screenspot_pro", "point", 1581, about="ScreenSpot-Pro: professional software at high resolution"),
    )


def _world(name: str, benchmark: Benchmark, n: int, about: str) -> TaskSpec:
    return TaskSpec(
        f"world_{name}", benchmark, n, unit=UNITS[benchmark], small_world=True, about=f"small world: {about}"
    )


def _register_world() -> None:
    """Drawn by visrl/world, in the shape of the published benchmarks; ``n`` is what tasks/world.py takes of the split."""
    _register_scenes("", "")
    register(_world("mmbench", "mmbench", 240, "60 questions in all rotations of their four options"))
    unseen = "combinations of colour, shape and relation that training never asks for"
    register(
        _world("heldout_rec", "rec", 1000, unseen),
        *(_world(f"heldout_{d}", "viscot", 400, unseen) for d in ("general", "relation", "fine")),
    )
    register(
        _world("deep", "way", 1000, "a sign on a poster: one look shows the small posters' signs, two the large ones'")
    )
    GROUPS["world_heldout"] = ("world_heldout_rec", *(f"world_heldout_{d}" for d in ("general", "relation", "fine")))
    _register_scenes("textured_", "over textures, with clutter and things partly covered: ")


def _register_scenes(kind: str, about: str) -> None:
    """The main tasks over one scenery (visrl/world/textured/scenery.py), and their group."""
    domains = ("doc", "chart", "general", "relation", "fine")
    register(_world(f"{kind}rec", "rec", 1000, f"{about}referring expressions, unique by construction"))
    asked = "a sign too small to read without looking"
    viscot = (_world(f"{kind}viscot_{d}", "viscot", 250, f"{about}{d}: {asked}") for d in domains)
    register(*viscot, group=f"world_{kind}viscot")
    pope = (_world(f"{kind}pope_{s}", "pope", 200, f"{about}is it there? yes or no") for s in _POPE_SPLITS)
    register(*pope, group=f"world_{kind}pope")
    register(_world(f"{kind}mme", "mme", 300, f"{about}yes/no pairs of five subtasks"))
    # What the headline is about comes first. Without world_mmbench: the bundled models were not trained on option letters,
    # and a row at chance says nothing of looking.
    groups = GROUPS[f"world_{kind}viscot"], GROUPS[f"world_{kind}pope"]
    GROUPS[f"world_{kind}".removesuffix("_")] = (*groups[0], f"world_{kind}rec", *groups[1], f"world_{kind}mme")


_register_published()
_register_zoom()
_register_world()
