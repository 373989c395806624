"""Where each task's documents lie: one row per task. docs/data.md is this table in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from visrl.evals.benchmarks import TASKS
from visrl.tasks import general, mmbench, rec, viscot, zoom
from visrl.tasks.common import Source, json_lines
from visrl.tasks.hub import HubDataset, PinnedFiles, Row

_VISCOT_COMMIT = "03729c4aad42cdfe2ae2eeaec74143db3cf8d017"
_VISCOT_SETS = tuple(name.removeprefix("viscot_") for name in TASKS if name.startswith("viscot_"))
_COCO_TRAIN = ("{name}", "train2014/{name}", "coco/train2014/{name}")
_COCO_VAL = ("{name}", "val2014/{name}", "coco/val2014/{name}")


def _rec(family: str, split: str) -> Source:
    partition = "umd" if family == "refcocog" else "unc"
    hub_split = {"val": "validation", "testA": "test"}.get(split, split)
    return Source(
        files=((f"rec/REC_{family}_{partition}_{split}.jsonl",),),
        parse=json_lines,
        adapter=rec.sample,
        places=_COCO_TRAIN,
        hub=HubDataset(f"jxu124/{family.replace('+', 'plus')}", hub_split, rec.from_hub),
    )


def _joined(chains: Iterable[Row], detections: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    for number, (chain, detection) in enumerate(zip(chains, detections, strict=True), 1):
        document = viscot.joined(chain, detection, f"row {number}")
        yield document.where, document.row


def _viscot(name: str) -> Source:
    chains, detections = f"benchmark/{name}.json", f"benchmark_det/{name}.jsonl"
    return Source(
        files=(
            (f"viscot_benchmark/{name}.json", f"viscot_benchmark/{chains}"),
            (f"viscot_benchmark/det_{name}.jsonl", f"viscot_benchmark/{detections}"),
        ),
        parse=viscot.documents,
        adapter=viscot.sample,
        hub=PinnedFiles(
            "deepcs233/Visual-CoT",
            # visual7w came later than the others
            "152fef52fb8407a1e59316505e1801d1f47a8ff7" if name == "visual7w" else _VISCOT_COMMIT,
            (f"viscot_benchmark/{chains}", f"viscot_benchmark/{detections}"),
            _joined,
        ),
    )


def _pope(pictures: str, split: str) -> Source:
    file = f"{pictures}_pope_{split}.json"
    hub = HubDataset("lmms-lab/POPE", "test", partial(general.pope_from_hub, split), image="image")
    return Source(
        files=((f"pope/{file}", f"pope/{pictures}/{file}"),),
        parse=json_lines,
        adapter=general.pope,
        places=("{name}", "gqa/{name}", "gqa/images/{name}") if pictures == "gqa" else _COCO_VAL,
        hub=hub if pictures == "coco" and split in ("random", "popular", "adversarial") else None,
    )


_MME = Source(
    files=tuple((f"mme/{subtask}.txt",) for subtask in general.MME_SUBTASKS),
    parse=general.mme_documents,
    finish=general.numbered,
    adapter=general.mme,
    places=("mme/{name}", "mme/{parent}/images/{file}"),
    hub=HubDataset("lmms-lab/MME", "test", general.mme_from_hub, image="image"),
)
_MMBENCH = Source(
    files=(("mmbench/mmbench_dev_en.tsv", "mmbench/mmbench_dev_en_20231003.tsv", "mmbench/MMBench_DEV_EN.tsv"),),
    parse=mmbench.documents,
    finish=mmbench.with_rotations,
    adapter=mmbench.sample,
    hub=HubDataset("lmms-lab/MMBench", "dev", mmbench.from_hub, config="en", image="image"),
    in_rows=True,
)


def _table(*spellings: str, adapter: Any, finish: Any = None) -> Source:
    """A TSV in VLMEvalKit's layout, pictures in its rows. No hub data set: theirs hold the same table as a file."""
    extra = {} if finish is None else {"finish": finish}
    return Source(files=(spellings,), parse=mmbench.documents, adapter=adapter, in_rows=True, **extra)


_ZOOM: dict[str, Source] = {
    "vstar": zoom.Folder(
        files=(),
        parse=zoom.vstar_documents,
        adapter=zoom.vstar,
        places=("vstar/{name}",),
        folder="images/vstar",
        patterns=tuple(f"{name}/*.json" for name in zoom.VSTAR_FOLDERS),
    ),
    **{
        f"hrbench_{k}": _table(
            f"hrbench/hr_bench_{k}.tsv",
            f"hrbench/HRBench{k.upper()}.tsv",
            adapter=zoom.hrbench,
            finish=zoom.with_cycles,
        )
        for k in ("4k", "8k")
    },
    "treebench": _table("treebench/TreeBench.tsv", adapter=zoom.treebench),
    "ref_l4": Source(
        files=(("ref_l4/ref-l4-val.parquet",), ("ref_l4/ref-l4-test.parquet",)),
        parse=zoom.parquet_rows,
        adapter=zoom.ref_l4,
        places=("ref_l4/{name}", "{name}"),
        hub=HubDataset("JierunChen/Ref-L4", "val+test"),
    ),
    "refcoco_m": Source(
        files=(("refcoco_m/refcoco_m.jsonl",),),
        parse=json_lines,
        finish=zoom.expressions,
        adapter=rec.sample,
        places=_COCO_TRAIN,
        hub=HubDataset("moondream/refcoco-m", "validation", image="image"),
    ),
    "screenspot": Source(
        files=tuple((f"screenspot/screenspot_{kind}.json",) for kind in ("mobile", "desktop", "web")),
        parse=zoom.screens,
        adapter=zoom.screenspot,
        places=("screenspot/{name}", "screenspot_imgs/{name}", "{name}"),
    ),
    "screenspot_pro": zoom.Folder(
        files=(),
        parse=zoom.screens,
        adapter=zoom.screenspot_pro,
        places=("screenspot_pro/{name}", "{name}"),
        folder="screenspot_pro/annotations",
        patterns=("*.json",),
    ),
}

SOURCES: dict[str, Source] = {
    **{f"{family}_{s}": _rec(family, s) for family in ("refcoco", "refcoco+") for s in ("val", "testA", "testB")},
    **{f"refcocog_{split}": _rec("refcocog", split) for split in ("val", "test")},
    **{f"viscot_{name}": _viscot(name) for name in _VISCOT_SETS},
    **{
        f"pope_{pictures}_{split}": _pope(pictures, split)
        for pictures in ("coco", "aokvqa", "gqa")
        for split in ("random", "popular", "adversarial")
    },
    "pope_coco_random_original": _pope("coco", "random_original2910"),
    "mme": _MME,
    "mmbench": _MMBENCH,
    **_ZOOM,
}
