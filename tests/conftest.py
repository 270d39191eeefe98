"""For all tests: hypothesis without deadlines, and models and runs small enough to take a step in a millisecond."""

import json
import random
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from trainwell.testing import TINY

if TYPE_CHECKING:
    from trainwell.model.gpt2 import GPT2
    from trainwell.run import Run

settings.register_profile("trainwell", deadline=None)
settings.load_profile("trainwell")


@pytest.fixture(scope="session")
def gpt2_of() -> Callable[..., "GPT2"]:
    """Makes a GPT-2 of a few thousand weights: `seed` says which weights, `dtype` their type, the rest changes it."""
    import torch  # here and not above: most tests run without torch

    from trainwell.model.gpt2 import GPT2, init_torch

    def make(*, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2:
        shape: dict[str, Any] = {"vocab_size": 19, "seq_len": 12, "num_layers": 2, "num_heads": 2, "width": 16}
        model = GPT2(**shape | changes)
        init_torch(model, torch.Generator().manual_seed(seed))
        return model.to(dtype)

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of 900 characters: words drawn from a few, the same each time."""
    dice = random.Random(7)
    words = " ".join(dice.choices(["the", "tide", "turns", "and", "every", "boat", "knows"], k=300))
    path = tmp_path / "text.txt"
    path.write_text(words[:900])
    return path


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with a cache of its own; return the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINWELL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"torchinductor_{getuser()}"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A tiny model is fastest on one thread; restored afterwards, as are the flags a test may have left behind."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build_tiny(own_folders: Path, one_thread: None, text: Path) -> Callable[..., "Run"]:
    """`build` on TINY and `text`; keys of a section given as a dict are added to those of TINY."""
    from trainwell.build import build

    def make(target: str = "demo", **changes: Any) -> "Run":
        keys = TINY | {"data": TINY["data"] | {"path": text}} | changes
        for name, value in changes.items():
            if isinstance(value, Mapping) and isinstance(TINY.get(name), Mapping):
                keys[name] = TINY[name] | ({"path": text} if name == "data" else {}) | value
        return build(target, **keys)

    return make


@pytest.fixture
def advance() -> Callable[["Run", int], None]:
    """Take the steps of a run up to state `until`, record and save them, and leave the loop there."""
    from trainwell.fit import steps

    def take(run: "Run", until: int) -> None:
        with run:
            for result in steps(run):
                if result.step == until:
                    break

    return take


@pytest.fixture
def bits_of() -> Callable[[Any], Any]:
    """The state of a trainer, or any other, in a form whose `==` compares every bit of every tensor."""
    import torch

    from trainwell.checkpoint.state import pack

    def bits(state: Any) -> Any:
        plain, tensors = pack(state)
        raw = {
            name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
            for name, tensor in tensors.items()
        }
        return json.dumps(plain), raw

    return bits


@pytest.fixture
def no_longer_than() -> Callable[[int], AbstractContextManager[None]]:
    """As if the disk were full: in the block no file can grow past so many bytes."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
