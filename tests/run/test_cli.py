"""The command line: its output, its exit status, and one line for every mistake, which says what to do."""

import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import ENVIRONMENT, isolate, metrics_of, settings, start, tiny_recipe
from tinyvit.kernels.cache import cache_folder

import tinyvit
from tinyvit import cli
from tinyvit.data import load_dataset
from tinyvit.dispatch import KernelSpec
from tinyvit.recipe import load_recipe, recipe_names
from tinyvit.run.loop import train

Run = Callable[..., tuple[int, str, str]]
KERNELS = cache_folder().parent  # of the user: each test has a cache folder of its own


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)
    for name in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tinyvit").mkdir(parents=True)  # of all that is kept there, only compiled kernels are shared
    (tmp_path / "cache" / "tinyvit" / "kernels").symlink_to(KERNELS, target_is_directory=True)
    Path("tiny.toml").write_text(tiny_recipe().to_toml())


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    """Return `run(*arguments)`, which runs the command here; it returns exit status, standard output and error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinyvit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


# Train --------------------------------------------------------------------------------------------------------------


def test_train_makes_a_folder_named_after_the_recipe_and_prints_the_accuracy(run):
    status, out, err = run("train", "tiny.toml", "--set", "epochs=3", "--set", "model.dim=4")
    assert (status, err) == (0, "")
    accuracy = metrics_of(Path("runs/tiny"))[-1]["val_accuracy"]
    wanted = rf"test accuracy {100 * accuracy:.2f} % after 3 epochs in \d+ (s|min) -> runs/tiny"
    assert re.fullmatch(wanted, out.splitlines()[-2])
    recipe = load_recipe("runs/tiny/recipe.toml")
    assert (recipe.train.epochs, recipe.model.dim) == (3, 4)
    *_, done, following = run("train", "tiny.toml")[1].splitlines()
    assert done.endswith("-> runs/tiny-2")
    assert following == "next: tinyvit evaluate runs/tiny-2; tinyvit predict runs/tiny-2 IMAGE"


def test_train_without_a_recipe_takes_digits(run):
    status, out, _ = run("train", *settings("epochs=1", "batch_size=1438", "dim=4", "depth=1", "heads=1"))
    assert status == 0
    assert out.splitlines()[-2].endswith("s -> runs/digits")  # another run than the one that the recipe describes


def test_train_writes_to_the_given_folder(run):
    assert run("train", "tiny.toml", "--out", "here", "--device", "cpu")[0] == 0
    assert Path("here/model.safetensors").exists()
    assert not Path("runs").exists()


def test_resume_says_that_a_run_is_finished(run):
    first = run("train", "tiny.toml", "--out", "here")
    status, out, err = run("train", "--resume", "here")
    assert (status, err) == (0, "")
    assert out.splitlines() == ["here is finished: all 2 epochs are trained", *first[1].splitlines()[-2:]]


@pytest.mark.slow
def test_ctrl_c_ends_with_the_command_to_resume_and_status_130():
    with start("train", "tiny.toml", "--set", "epochs=1000", "--out", "a run") as process:
        while not process.stdout.readline().startswith("epoch    2/1000"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    says = r"stopped in epoch \d+ of 1000, after step \d+; continue with: tinyvit train --resume 'a run'"
    assert re.fullmatch(rf"\s*tinyvit: {says}\n", err)
    last = metrics_of(Path("a run"))[-1]["epoch"]
    with start("train", "--resume", "a run") as process:
        assert "resuming in epoch" in process.stdout.readline()
        assert process.stdout.readline().startswith(f"epoch {last + 1:4}/1000")
        process.kill()


def test_a_run_that_fails_ends_with_status_1_and_one_line(run):
    status, _, err = run("train", "tiny.toml", *settings("optimizer=sgd", "lr=1e30"))
    assert status == 1
    assert re.fullmatch(r"tinyvit: error: .* step \d+ is (nan|inf), in epoch 1; runs/tiny/checkpoint.*\n", err)


# Evaluate and predict -----------------------------------------------------------------------------------------------


def test_evaluate_prints_the_accuracy_of_the_run_and_of_each_class(run):
    result = train(tiny_recipe("epochs=4"), "tiny")
    status, out, err = run("evaluate", result.folder)
    assert (status, err) == (0, "")
    first, _, head, *table, _, _, _, _, mistakes = out.splitlines()
    right, images, loss = re.fullmatch(
        r"accuracy [\d.]+ % \((\d+) of (\d+) test images\), loss ([\d.]+)", first
    ).groups()
    assert int(right) / int(images) == result.accuracy
    assert float(loss) == pytest.approx(result.metrics[-1]["val_loss"], abs=1e-4)
    assert head.split() == ["class", "images", "right", "recall", "precision", "F1"]
    rows = [line.split() for line in table]
    assert [row[0] for row in rows] == list("0123456789")
    counts = np.bincount(load_dataset("digits", "test").labels)
    assert [int(row[1]) for row in rows] == counts.tolist()
    assert sum(int(row[2]) for row in rows) == int(right)
    for _, count, hits, share, *_ in rows:
        assert share == f"{100 * int(hits) / int(count):.2f}"
    times = [int(n) for n in re.findall(r"'\d' taken for '\d' (\d+) times?", mistakes)]
    assert times == sorted(times, reverse=True)
    assert sum(times) <= int(images) - int(right)
    assert len(times) == 8 or sum(times) == int(images) - int(right)


def test_predict_prints_path_class_and_probability_with_tabs_between(run):
    train(tiny_recipe("epochs=1"), "tiny")
    for name, pixels in zip(("a.png", "b c.png"), load_dataset("digits", "test").images, strict=False):
        Image.fromarray(pixels[0]).save(name)
    status, out, err = run("predict", "runs/tiny", "a.png", "b c.png")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"a\.png\t\d\t[01]\.\d{4}\nb c\.png\t\d\t[01]\.\d{4}\n", out)


# Information and data -----------------------------------------------------------------------------------------------


def test_info_shows_versions_devices_threads_data_and_implementations(run, tmp_path, monkeypatch):
    (tmp_path / "mine" / "mnist").mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "mine" / "mnist" / f"{part}-ubyte.gz").touch()
    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr("tinyvit.kernels.registry.SPECS", ())
    status, out, err = run("info")
    assert (status, err) == (0, "")
    assert [part.splitlines()[0].split()[0] for part in out.split("\n\n")] == [
        *("versions", "devices", "threads", "several", "data", "operations")
    ]
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("  ")}
    assert shown["tinyvit"] == tinyvit.__version__
    assert shown["numpy"] == np.__version__
    assert shown["cpu"] == "yes"
    assert shown["blas"]
    assert shown["digits"] == "comes with the package"
    assert shown["mnist"] == str(tmp_path / "mine" / "mnist")
    assert shown["cifar-100"] == "not found; get it with: tinyvit data fetch cifar-100"
    assert shown["layer_norm"] == "plain NumPy rule  no kernel is registered"


def test_info_shows_the_kernel_that_serves_an_operation(run, monkeypatch):
    module = types.SimpleNamespace(forward=print, backward=print)
    monkeypatch.setitem(sys.modules, "made_up_kernel", module)
    float32, float16 = frozenset({np.dtype("float32")}), frozenset({np.dtype("float16")})
    specs = (
        KernelSpec("layer_norm", "cupy", "missing", float32, refuses=lambda inputs, params: "no GPU"),
        KernelSpec("layer_norm", "numba", "made_up_kernel", float32),
        KernelSpec("softmax", "numba", "missing", float16),
    )
    monkeypatch.setattr("tinyvit.kernels.registry.SPECS", specs)
    _, out, _ = run("info")
    assert re.search(r"^  layer_norm +numba kernel, version 1 of 1$", out, re.MULTILINE)
    assert re.search(
        r"^  softmax +plain NumPy rule +the inputs are float32, and numba computes in float16$", out, re.MULTILINE
    )


def test_info_works_where_the_data_folder_is_missing(run, monkeypatch):
    monkeypatch.setenv("TINYVIT_DATA", "nowhere")
    status, out, _ = run("info")
    assert status == 0
    assert "TINYVIT_DATA=nowhere is not a folder" in out


def test_fetch_prints_the_folder(run):
    assert run("data", "fetch", "digits") == (0, f"{Path(tinyvit.__file__).parent / 'data'}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "tinyvit train"),
        (["--help"], "tinyvit predict runs/digits a.png"),
        (["train", "--help"], "tinyvit train mnist --set epochs=3"),
        (["evaluate", "-h"], "tinyvit evaluate runs/digits"),
        (["predict", "--help"], "tinyvit predict runs/digits three.png"),
        (["info", "--help"], "Usage: tinyvit info"),
        (["data", "--help"], "TINYVIT_DATA"),
        (["data", "fetch", "--help"], "tinyvit data fetch mnist"),
    ],
)
def test_help_shows_an_example(run, arguments, says):
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert says in out
    assert max(map(len, out.splitlines())) <= 80


def test_version(run):
    assert run("--version") == (0, f"tinyvit {tinyvit.__version__}\n", "")


def test_help_loads_no_heavy_package():
    heavy = "('numba', 'matplotlib', 'rich', 'PIL', 'safetensors', 'threadpoolctl', 'cupy')"
    script = (
        f"import sys; from tinyvit.cli import main\ntry: main()\nfinally: print(sorted(sys.modules.keys() & {heavy}))"
    )
    answer = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("\n[]\n")


# Mistakes -----------------------------------------------------------------------------------------------------------

RECIPES = ", ".join(recipe_names())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nonsense", "No such command 'nonsense' (see tinyvit --help)"),
        ("--nonsense", "No such option '--nonsense' (see tinyvit --help)"),
        ("train --epochs 3", "No such option '--epochs'; to change the recipe, write --set epochs=3 (see tinyvit"),
        ("train a b", "Got unexpected extra argument (b) (see tinyvit train --help)"),
        ("train digts", f"there is no recipe 'digts' (did you mean 'digits'?): give {RECIPES} or the path of a"),
        ("train my.toml", "there is no recipe 'my.toml'"),
        ("train --set epoch=3", "there is no key 'epoch': did you mean train.epochs?"),
        ("train --set epochs", "'epochs' is not of the form key=value, such as train.lr=1e-3"),
        ("train --set epochs=many", "train.epochs is 'many'; it must be an integer, at least 1"),
        ("train --set patch_size=3", "model.patch_size: patch_size (3, 3) does not divide image_size (8, 8)"),
        ("train --set name=digit", "there is no data set 'digit' (did you mean 'digits'?); available: "),
        ("train --set name=folder:no", "there is no folder 'no'"),
        ("train --set image_size=9", "image_size is 9; the images of digits have the size 8"),
        ("train --out .", ". is not empty; give a folder that does not exist, or --resume to continue a run"),
        ("train --out tiny.toml", "tiny.toml exists already"),
        ("train --out=", "Invalid value for '--out': it is empty; give the name of a folder (see tinyvit train"),
        ("train --resume=", "Invalid value for '--resume': it is empty; give the name of a folder"),
        ("train --device cuda", "Invalid value for '--device': device 'cuda' is not usable"),
        ("train --device gpu", "Invalid value for '--device': device is 'gpu'; it must be 'cpu'"),
        ("train --resume nope", "nope is not a run folder: it has no recipe.toml; `tinyvit train` makes one"),
        (
            "train digits --resume x",
            "--resume uses the recipe in DIR: leave out RECIPE, --images, --precision, --seeds",
        ),
        ("train --resume x --set lr=1", "x is not a run folder: it has no recipe.toml"),
        ("train --seeds 1,1", "--seeds is '1,1'; it must be different integers from 0, such as 0,1,2"),
        ("train folder", "the recipe 'folder' is for images of your own: tinyvit train PATH, or --images PATH"),
        ("evaluate", "Missing argument 'RUN' (see tinyvit evaluate --help)"),
        ("evaluate nope", "there is no run 'nope'; available: caption, digits, retrieve, vqa"),
        ("predict run", "Missing argument 'IMAGE...' (see tinyvit predict --help)"),
        ("predict nope a.png", "there is no run 'nope'"),
        ("data", "Missing command (see tinyvit data --help)"),
        ("data fetch mnits", "there is no data set 'mnits' (did you mean 'mnist'?); available: "),
    ],
)
def test_a_mistake_is_one_line_with_status_2(run, arguments, says):
    status, out, err = run(*arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"tinyvit: error: {says}")
    assert err.count("\n") == 1
    assert set(os.listdir()) - {"cache"} == {"tiny.toml"}


@pytest.mark.parametrize(
    ("content", "says"), [(None, "there is no file 'bad.png'"), (b"x", "bad.png cannot be read as an image")]
)
def test_an_error_about_an_unreadable_image_names_its_path(run, content, says):
    train(tiny_recipe("epochs=1"), "tiny")
    if content:
        Path("bad.png").write_bytes(content)
    status, out, err = run("predict", "runs/tiny", "bad.png")
    assert (status, out) == (2, "")
    assert err.startswith(f"tinyvit: error: {says}")
    assert err.count("\n") == 1


def test_predict_continues_after_an_unreadable_image(run):
    train(tiny_recipe("epochs=1"), "tiny")
    Path("bad.png").write_bytes(b"x")
    Image.new("L", (8, 8)).save("good.png")
    status, out, err = run("predict", "runs/tiny", "missing.png", "good.png", "bad.png", "good.png")
    assert status == 2
    assert [line.split("\t")[0] for line in out.splitlines()] == ["good.png", "good.png"]
    assert [line[: line.index(".png")].split()[-1] for line in err.splitlines()] == ["'missing", "bad"]


def test_an_empty_recipe_name_is_an_error(run):
    status, out, err = run("train", "")
    assert (status, out) == (2, "")
    assert err.startswith("tinyvit: error: there is no recipe ''")


def test_an_error_about_damaged_weights_names_their_path(run):
    train(tiny_recipe("epochs=1"), "tiny")
    Path("runs/tiny/model.safetensors").write_bytes(b"")
    assert run("evaluate", "runs/tiny")[::2] == (
        2,
        "tinyvit: error: runs/tiny/model.safetensors is empty: restore it from a copy, or start again without it\n",
    )


def test_an_unexpected_error_is_one_line_and_has_a_traceback_on_request(run, monkeypatch):
    monkeypatch.setattr("tinyvit.run.folder.load_run", lambda path: 1 / 0)
    status, _, err = run("evaluate", "x")
    assert status == 1
    assert err == "tinyvit: error: ZeroDivisionError: division by zero (a bug; TINYVIT_TRACEBACK=1 shows where)\n"
    monkeypatch.setenv("TINYVIT_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["tinyvit", "evaluate", "x"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_error_about_memory_says_what_needs_less(run, monkeypatch):
    def too_large(path):
        raise MemoryError("Unable to allocate 3.00 TiB")

    monkeypatch.setattr("tinyvit.run.folder.load_run", too_large)
    says = "out of memory; a smaller model or data.batch_size needs less (Unable to allocate 3.00 TiB)"
    assert run("evaluate", "x") == (1, "", f"tinyvit: error: {says}\n")


def test_ctrl_c_before_the_run_began_is_status_130_without_a_traceback(run, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyvit.recipe.load_recipe", interrupted)
    status, out, err = run("train")
    assert (status, out, err.strip()) == (130, "", "tinyvit: stopped")


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "lines"), [(["info"], 0), (["train", "tiny.toml", "--set", "epochs=1000"], 1)])
def test_a_closed_pipe_ends_the_command_without_an_error(arguments, lines):
    with start(*arguments) as process:
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("arguments", ["info", "train tiny.toml"])
def test_a_full_output_is_an_error_but_training_runs_to_the_end(arguments):
    command = [sys.executable, "-W", "error", "-m", "tinyvit", *arguments.split()]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.stderr == "tinyvit: error: reading or writing failed: [Errno 28] No space left on device\n"
    assert ended.returncode == 1
    if arguments.startswith("train"):
        assert len(metrics_of(Path("runs/tiny"))) == 2
        assert Path("runs/tiny/curves.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_file_names_that_are_not_valid_text_are_shown():
    folder, picture = os.fsdecode(b"r\xffn"), os.fsdecode(b"\xfe.png")
    with start("train", "tiny.toml", "--out", folder) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-2].endswith(r" -> r\udcffn")
    Image.new("L", (8, 8)).save(picture)
    with start("predict", folder, picture) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("\\udcfe.png\t")


def test_a_process_prints_the_same_errors_as_the_function():
    with start("evaluate", "nope") as process:
        _, err = process.communicate()
    assert (process.returncode, err.partition(";")[0]) == (2, "tinyvit: error: there is no run 'nope'")
