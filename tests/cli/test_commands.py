"""The commands as a user types them: real processes, real files."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import backend_or_skip
from xpformer.cli import main

SMALL = ("--threads", "1", "--set", "model.depth=1", "--set", "model.dim=16")
SIX_STEPS = ("train", "vit-digits", *SMALL, "--set", "steps=6", "--set", "evaluate_every=3")


def xpformer(*arguments: object, cwd: Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line and check its exit code."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XPFORMER_DATA", "FORCE_COLOR")} | variables
    command = [sys.executable, "-m", "xpformer", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, f"{' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    return done


def error_of(*arguments: object, cwd: Path, code: int = 2, **variables: str) -> str:
    """The one line that a failing command says."""
    done = xpformer(*arguments, cwd=cwd, code=code, **variables)
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("xpformer: error: ")]
    assert len(errors) == 1, done.stderr
    assert lines[-1] == errors[0]
    assert "Traceback" not in done.stderr
    if code == 2:
        assert lines == errors
        assert done.stdout == ""
    return errors[0].removeprefix("xpformer: error: ")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained run, ``runs/vit-digits-1``, and what training printed."""
    folder = tmp_path_factory.mktemp("home")
    done = xpformer(*SIX_STEPS, cwd=folder)
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


RUN = Path("runs/vit-digits-1")


def test_train_says_what_it_does_and_what_to_type_next(home: Path) -> None:
    notes, results = (home / "stderr").read_text(), (home / "stdout").read_text()
    first = notes.splitlines()[0]
    for part in (
        "vit-digits (small)",
        "parameters",
        "digits 1,257 train",
        "numpy",
        "1 thread,",
        "6 steps",
        "seed 0",
        "float32",
    ):
        assert part in first
    assert re.search(r"^step 3  epoch .* validation loss .* accuracy .*%  best$", notes, re.MULTILINE)
    assert "confusion: rows are true" in results
    assert re.search(r"^validation accuracy [\d.]+% \(\d+ of 180\)", results, re.MULTILINE)
    assert f"xpformer evaluate {RUN}" in results
    for picture in ("curves.png", "confusion.png", "misclassified.png"):
        assert (home / RUN / "figures" / picture).read_bytes().startswith(b"\x89PNG")
    events = [json.loads(line)["event"] for line in (home / RUN / "log.jsonl").read_text().splitlines()]
    assert "test" not in events


def test_evaluate_prints_json_and_csv_that_agree(home: Path) -> None:
    done = xpformer("evaluate", RUN, "--json", "--csv", "classes.csv", cwd=home)
    result = json.loads(done.stdout)
    assert result["split"] == "test"
    assert result["count"] == 360
    assert sum(map(sum, result["confusion"])) == 360
    rows = list(csv.DictReader((home / "classes.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == [*"0123456789", "accuracy"]
    assert float(rows[3]["recall"]) == result["classes"][3]["recall"]
    assert "the test split was used 1 time" in done.stderr
    assert "used 2 times" in xpformer("evaluate", RUN, cwd=home).stderr
    assert (home / RUN / "figures/confusion_test.png").is_file()
    validation = json.loads(xpformer("evaluate", RUN, "--split", "val", "--step", "6", "--json", cwd=home).stdout)
    assert (validation["split"], validation["step"], validation["count"]) == ("validation", 6, 180)


def test_predict_reads_any_picture(home: Path) -> None:
    from PIL import Image, ImageDraw

    paper = Image.new("RGB", (120, 90), "white")
    ImageDraw.Draw(paper).line([(60, 10), (60, 80)], fill="black", width=12)
    paper.save(home / "one.png")
    paper.convert("L").save(home / "grey.jpg")
    result = json.loads(xpformer("predict", RUN, "one.png", "grey.jpg", "--json", cwd=home).stdout)
    assert [record["image"] for record in result] == ["one.png", "grey.jpg"]
    for record in result:
        assert sum(record["probabilities"].values()) == pytest.approx(1.0)
        assert record["prediction"] == max(record["probabilities"], key=record["probabilities"].get)
    files = ("one.png", "grey.jpg")  # the same batch: of another size BLAS may sum in another order
    inverted = json.loads(xpformer("predict", RUN, *files, "--invert", "yes", "--json", cwd=home).stdout)
    assert inverted[0]["probabilities"] == result[0]["probabilities"]  # auto saw the bright paper
    kept = json.loads(xpformer("predict", RUN, "one.png", "--invert", "no", "--json", cwd=home).stdout)
    assert kept[0]["probabilities"] != result[0]["probabilities"]
    assert "one.png" in xpformer("predict", RUN, "one.png", cwd=home).stdout
    assert (home / RUN / "figures/predictions.png").is_file()


def test_predict_writes_the_pictures_of_the_data_set(home: Path) -> None:
    from PIL import Image

    done = xpformer("predict", RUN, "--first", "12", "--index", "40", "--to", "pictures", cwd=home)
    assert re.search(r"\d+ of 13 right", done.stdout)
    files = sorted((home / "pictures").glob("*.jpg"))
    names = [re.fullmatch(r"(\d+)_Predict_\d_Truth_\d\.jpg", file.name) for file in files]
    assert sorted(int(name[1]) for name in names if name) == [*range(12), 40]
    with Image.open(files[0]) as picture:
        assert picture.size == (224, 224)
    assert (home / "pictures/predictions.png").is_file()


def test_a_copied_recipe_trains_and_nothing_is_written_over(home: Path) -> None:
    assert "xpformer train mine.py" in xpformer("recipes", "copy", "vit-digits", "mine.py", cwd=home).stdout
    assert "exists already" in error_of("recipes", "copy", "vit-digits", "mine.py", cwd=home)
    done = xpformer("train", "mine.py", *SIX_STEPS[2:], "--out", "mine", "--max-steps", "2", cwd=home)
    assert "--max-steps 2 of 6: the learning-rate schedule still runs over 6 steps" in done.stderr
    assert "go on with:  xpformer resume mine" in done.stdout
    (home / "mine.py").unlink()  # the run keeps its text
    beyond = xpformer("resume", "mine", "--max-steps", "8", cwd=home)
    assert "the schedule ends at step 6; from there to step 8 the learning rate stays at 0" in beyond.stderr
    assert "goes on after step 2" in beyond.stderr
    finished = xpformer("resume", "mine", cwd=home)
    assert "finished at step 8, nothing is left to do" in finished.stderr
    assert "xpformer evaluate mine" in finished.stdout


def test_a_recipe_is_a_script(home: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "vit_digits.py"
    command = [sys.executable, str(recipe), *SIX_STEPS[2:], "--max-steps", "1", "--out", "script"]
    subprocess.run(command, cwd=home, check=True, capture_output=True, timeout=120)
    assert json.loads((home / "script/run.json").read_text())["steps"] == 6


def test_a_loss_that_is_not_finite_exits_3_and_keeps_the_checkpoints(home: Path) -> None:
    arguments = [*SIX_STEPS, "--set", "lr=1e30", "--set", "optimizer=sgd", "--set", "clip=0", "--set", "warmup_steps=0"]
    message = error_of(*arguments, "--set", "checkpoint_every=1", "--out", "diverged", cwd=home, code=3)
    assert re.match(
        r"step \d+: the loss or a gradient is not finite; first bad tensor: .* of .*; training samples", message
    )
    from xpformer.training import checkpoint

    saved, notes = checkpoint.newest(home / "diverged/checkpoints")
    assert notes == []
    assert saved.step >= 1


def test_output_that_nobody_reads_ends_quietly(home: Path) -> None:
    command = f'"{sys.executable}" -m xpformer gradcheck linear | true; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


# ---- bad input ------------------------------------------------------------------------------------------------------

Call = Callable[..., str]


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command that fails with exit code 2, in this process, and return its one line."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("XPFORMER_DATA", raising=False)

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert (stopped.value.code, out) == (2, ""), err
        assert err.startswith("xpformer: error: ")
        assert err.count("\n") == 1
        return err

    return run


def test_bad_input_of_a_real_process(home: Path) -> None:
    assert "unknown command 'trian'; did you mean 'train'?" in error_of("trian", cwd=home)
    assert "heads = 5 does not divide" in error_of("train", "vit-digits", "--set", "model.heads=5", cwd=home)


BAD: list[tuple[Sequence[str], str]] = [
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["train", "vit-digits", "--preest", "small"], "--preset"),
    (["train", "vit-digit"], "unknown recipe 'vit-digit'; did you mean 'vit-digits'?"),
    (["train", "mine-too.py"], "recipe mine-too.py: there is no such file"),
    (["train", "vit-digits", "--preset", "smal"], "has no preset 'smal'; did you mean 'small'?"),
    (["train", "vit-digits", "--set", "epoch=3"], "unknown option; did you mean 'epochs'?"),
    (["train", "vit-digits", "--set", "epochs=many"], "train.epochs: Expected float, got 'many'"),
    (["train", "vit-digits", "--set", "lr=NaN"], "not a finite number"),
    (["train", "vit-digits", "--set", "model.heads=5"], "heads = 5 does not divide dim = 64"),
    (["train", "vit-digits", "--set", "model.image_size=16"], "do not fit the model"),
    (["train", "vit-digits", "--backend", "nunpy"], "unknown backend 'nunpy'; did you mean 'numpy'?"),
    (
        ["train", "vit-digits", "--matmul-precision", "high"],
        "backend numpy has no matmul precision 'high', only ",
    ),
    (["train", "vit-digits", "--matmul-precision", "hgih"], "unknown matmul precision 'hgih'; did you mean 'high'?"),
    *(
        ([*command, "runs/vit-digits-1", "--matmul-precision", "high"], "take --matmul-precision highest")
        for command in (["resume"], ["evaluate"], ["predict", "--first=1"], ["generate"], ["plot", "attention"])
    ),
    (["train", "vit-digits", "--dtype", "float16"], "it is float32 or float64"),
    (["train", "vit-digits", "--threads", "0"], "threads = 0 is less than 1"),
    (["train", "vit-digits", "--threads", "100000"], "threads = 100000 is more than 1024"),
    (["train", "vit-digits", "--out", "a" * 300], "cannot be looked into: File name too long; take another --out"),
    (["train", "a" * 300 + ".py"], "File name too long; take a shorter one"),
    (["train", "vit-digits", "--out", "runs/vit-digits-1"], "is not empty; a run is never written over"),
    (["train", "vit-digits", "--out", "stdout/run"], "stdout/run: cannot make a run here"),
    (["train", "vit-mnist", "--data", "runs"], "has no train-images-idx3-ubyte"),
    (["train", "vit-mnist", "--data", "nowhere"], "nowhere: the data directory is not a directory"),
    (["resume", "nowhere"], "nowhere: does not exist"),
    (["resume", "runs"], "runs: is not a run"),
    (["resume", "runs/vit-digits-1", "--max-steps", "0"], "--max-steps"),
    (["evaluate", "runs/vit-digits-1", "--split", "tset"], "unknown split 'tset'; it is val, test or train"),
    (["evaluate", "runs/vit-digits-1", "--step", "4711"], "has no checkpoint of step 4711; kept are those of: "),
    (["evaluate", "runs/vit-digits-1", "--split", "val", "--csv", "stdout/x.csv"], "cannot be written"),
    (["predict", "runs/vit-digits-1"], "name image files"),
    (["predict", "runs/vit-digits-1", "nothing.png"], "nothing.png"),
    (["predict", "runs/vit-digits-1", "stdout"], "is not a picture"),
    (["predict", "runs/vit-digits-1", "--index", "180"], "image 180: the validation split has images 0 to 179"),
    (["recipes", "copy", "vit-minst", "x.py"], "did you mean 'vit-mnist'?"),
    (["summary", "runs/vit-digits-1", "--set", "depth=2"], "is a run and has its settings"),
    (["summary", "vit-digits", "--backend", "nump"], "unknown backend 'nump'; did you mean 'numpy'?"),
    (["profile", "vit-digitz"], "unknown recipe 'vit-digitz'; did you mean 'vit-digits'?"),
    (["profile", "vit-digits", "--steps", "0"], "--steps"),
    (["profile", "vit-digits", "--set", "model.deph=2"], "unknown option 'deph' in model; did you mean 'depth'?"),
    (["profile", "vit-digits", "--threads", "0"], "threads = 0 is less than 1"),
    (["profile", "vit-digits", "--dtype", "float16"], "it is float32 or float64"),
    (["profile", "vit-digits", "--backend", "nump"], "unknown backend 'nump'; did you mean 'numpy'?"),
    (["gradcheck", "lineer"], "unknown operation or layer 'lineer'; did you mean 'linear'?"),
    (["gradcheck", "linear", "--backend", "nump"], "unknown backend 'nump'; did you mean 'numpy'?"),
]


@pytest.mark.parametrize(("arguments", "expected"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line(home: Path, call: Call, arguments: Sequence[str], expected: str) -> None:
    before = sorted((home / "runs").rglob("*"))
    assert expected in call(*arguments)
    assert sorted((home / "runs").rglob("*")) == before


def test_commands_to_type_next_are_quoted(home: Path) -> None:
    assert "train 'my own.py'" in xpformer("recipes", "copy", "vit-digits", "my own.py", cwd=home).stdout
    done = xpformer(*SIX_STEPS, "--out", "a run", "--max-steps", "2", cwd=home)
    assert "go on with:  xpformer resume 'a run'" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_takes_nothing(home: Path) -> None:
    command = [sys.executable, "-m", "xpformer", "recipes"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "xpformer: error: the output: cannot be written: No space left on device; free some space\n"
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, timeout=60, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


def _idx(shape: Sequence[int], value: int = 0) -> bytes:
    count = 1
    for n in shape:
        count *= n
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    return header + bytes([value]) * count


def test_damaged_data_files_are_one_line(home: Path, call: Call) -> None:
    folder = home / "data"
    folder.mkdir()
    train, test = (
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    )
    for images, labels in (train, test):
        (folder / images).write_bytes(_idx((40, 28, 28)))
        (folder / labels).write_bytes(_idx((40,), value=3))

    def with_file(name: str, data: bytes) -> str:
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        message = call("train", "vit-mnist", "--data", "data", "--set", "validation=8")
        (folder / name).write_bytes(good)
        return message

    assert train[0] in with_file(train[0], _idx((40, 28, 28))[:-5])
    assert train[1] in with_file(train[1], _idx((40, 28, 28)))  # swapped
    assert "40 images but 39 labels" in with_file(train[1], _idx((39,)))
    assert "label of image 0 is 12" in with_file(test[1], _idx((40,), value=12))
    assert "shape" in with_file(test[0], _idx((40, 20, 20)))
    (folder / test[0]).unlink()
    (folder / f"{test[0]}.gz").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert "web page" in call("train", "vit-mnist", "--data", "data", "--set", "validation=8")
    assert not list((home / "runs").glob("vit-mnist*"))


def test_damaged_and_newer_checkpoints_are_one_line(home: Path, call: Call) -> None:
    import shutil

    run = home / "damaged"
    shutil.copytree(home / RUN, run, symlinks=True)
    step = run / "checkpoints/step_00000006"
    weights = bytearray((step / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (step / "model.safetensors").write_bytes(weights)
    assert "model.safetensors: is damaged" in call("evaluate", "damaged", "--step", "6")
    manifest = step / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 3'))
    assert "written by a newer xpformer" in call("evaluate", "damaged", "--step", "6")
    (run / "run.json").write_text((run / "run.json").read_text().replace('"version": 1', '"version": 9'))
    assert "written by a newer xpformer" in call("resume", "damaged")


# ---- looks ----------------------------------------------------------------------------------------------------------


def test_json_for_programs(home: Path) -> None:
    recipes = json.loads(xpformer("recipes", "--json", cwd=home).stdout)
    assert {"name", "summary", "presets", "default", "figures"} <= recipes[0].keys()
    of_recipe = json.loads(xpformer("summary", "vit-mnist", "--preset", "seed", "--json", cwd=home).stdout)
    assert of_recipe["total"]["parameters"] == 847_498
    assert of_recipe["settings"]["model"]["dim"] == 96
    of_run = json.loads(xpformer("summary", RUN, "--batch", "2", "--json", cwd=home).stdout)
    assert of_run["settings"]["model"]["depth"] == 1
    backends = {b["name"]: b for b in json.loads(xpformer("backends", "--json", cwd=home).stdout)}
    assert backends["numpy"]["usable"]
    profiled = json.loads(xpformer("profile", "vit-digits", *SMALL, "--steps", "1", "--json", cwd=home).stdout)
    assert profiled["threads"] == 1
    assert {row["op"] for row in profiled["operations"]} >= {"linear", "attention", "cross_entropy"}
    checked = json.loads(xpformer("gradcheck", "linear", "--seed", "3", "--json", cwd=home).stdout)
    assert checked["ok"]
    assert {"subject", "check", "argument", "error", "limit", "ok"} <= checked["checks"][0].keys()


def test_recompute(home: Path) -> None:
    """An option of a run that its settings keep."""
    out = home / "recomputed"
    xpformer("train", "vit-digits", *SMALL, "--recompute", "--max-steps", "1", "--out", out, cwd=home)
    kept, again = (
        json.loads(xpformer("summary", *what, "--json", cwd=home).stdout) for what in ((RUN,), (RUN, "--recompute"))
    )
    of_run = json.loads(xpformer("summary", out, "--json", cwd=home).stdout)
    assert of_run["settings"]["train"]["recompute"]
    assert of_run["total"] == again["total"]
    assert again["total"]["kept"] < kept["total"]["kept"]


@pytest.mark.parametrize("spec", ["strict", "torch", "torch:meta"])
def test_looks_on_another_backend(home: Path, spec: str) -> None:
    backend_or_skip(spec)
    summary = json.loads(xpformer("summary", "vit-digits", "--backend", spec, "--json", cwd=home).stdout)
    assert summary["backend"] == spec
    if spec == "torch:meta":  # shapes are enough for a summary, not for a gradient
        assert "holds no values" in xpformer("gradcheck", "linear", "--backend", spec, cwd=home, code=2).stderr
    else:
        assert "checks right" in xpformer("gradcheck", "linear", "--backend", spec, cwd=home).stdout


def test_tables_for_people(home: Path) -> None:
    assert "seed-sgd" in xpformer("recipes", cwd=home).stdout
    assert "blocks.0" in xpformer("summary", RUN, cwd=home).stdout
    assert "by operation and pair" in xpformer("profile", "vit-digits", *SMALL, "--steps", "1", cwd=home).stdout
    assert "numpy" in xpformer("backends", cwd=home).stdout
    assert "dx = dy Wᵀ" in xpformer("gradcheck", "linear", "--explain", cwd=home, PYTHONUTF8="1").stdout
    done = xpformer("gradcheck", "Block", cwd=home)
    assert "right" in done.stdout
    assert "checks right" in done.stdout.splitlines()[-1]
    for text in (xpformer(cwd=home).stdout, xpformer("--help", cwd=home).stdout):
        assert "gradcheck" in text
        assert "  xpformer train vit-digits  " in text


def test_plot_attention_of_an_image(home: Path) -> None:
    said = xpformer("plot", "attention", RUN, "--index", "3", "--to", "maps", cwd=home).stderr
    assert said == "picture: maps/attention.png\n"
    assert "say which it shall see with --index N" in error_of("plot", "attention", RUN, "--prompt", "a", cwd=home)
    (home / "file").write_text("")
    assert "file: cannot be written" in error_of("plot", "attention", RUN, "--index", "3", "--to", "file", cwd=home)
