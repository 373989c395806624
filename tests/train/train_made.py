"""Pairs and models for the training tests: pictures of noise, drawn from a seed, and the tiny random models of every family."""

import numpy as np
import torch
from PIL import Image
from tiny_models import build

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Picture
from visrl.train.common.models import TrainableModel, trainable
from visrl.train.config.recipe import ModelSection
from visrl.train.data.candidates import Candidate, Demonstration, Preference

torch.set_num_threads(1)
PAPER_SEVEN = ("llava", "llava_next", "mllama", "paligemma2", "qwen2_5_vl", "qwen3_vl", "internvl")
FAMILIES = (*PAPER_SEVEN, "yi_vl", "qwen2_vl", "idefics3")


def picture(seed: int, size: tuple[int, int]) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return Picture(f"noise{seed}", lambda: image)


def sample(i: int) -> CoTSample:
    size = [(40, 30), (30, 44), (36, 36)][i % 3]
    question = ["what letter is on the red circle ?", "blue ?", "is the square green ?"][i % 3]
    return CoTSample(id=f"s{i}", task="t", kind="qa", question=question, picture=picture(i, size), size=size)


def preference(i: int, protocol: str = "visrl_train") -> Preference:
    chosen = Candidate(Box(2.0, 3.0, 20.0, 25.0), answer="A B" if i % 2 else "yes")
    rejected = Candidate(Box(5.0, 1.0, 28.0, 9.0 + i % 5), answer="green square C")
    return Preference(sample(i), protocol, chosen, rejected)


def demonstration(i: int, protocol: str = "visrl_train") -> Demonstration:
    return Demonstration(sample(i), protocol, preference(i).chosen)


def tiny(name: str, dtype: torch.dtype = torch.float32, **more) -> TrainableModel:
    """A tiny trainable that writes boxes in the paper's text format."""
    model, processor = build(name, dtype=dtype)
    section = ModelSection(path="none", dtype="float32", box_format="paper")
    return trainable(model, processor, section, more.get("lora"), seed=0)
