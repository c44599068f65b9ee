"""The page and its figures, from records made up by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prune_export import cli
from prune_export.delivery.layer_plot import parts_of, rows
from prune_export.delivery.pareto_plot import predicted_front
from prune_export.delivery.plots import predicted_pairs
from prune_export.delivery.report import drawn, remake_report, render, with_report_files, write_report
from prune_export.errors import BadInputError
from prune_export.hashes import SEAL, check_files, check_seal, file_records
from prune_export.manifest import (
    MANIFEST,
    PLAN_FILE,
    Candidate,
    Manifest,
    Measurement,
    ParityRecord,
    PredictedPoint,
    Round,
)
from prune_export.plan import LayerKeep, PrunePlan, keep_all
from prune_export.shape import LayerShape, MixerShape, ModelShape
from prune_export.target import Target, Workload

DENSE = ModelShape("llama", 64, 16, 100, True, (LayerShape(4, 2, 96),) * 3)
KEPT = (LayerKeep((0, 1), tuple(range(48))), LayerKeep((1,), ()), LayerKeep((), tuple(range(96))))
PLAN = PrunePlan("org/model", "a" * 64, DENSE, KEPT, "fast search <of> 7", "seconds", "b" * 64, compensated=True)
MIXER = MixerShape(fixed=10, unit=20, heads=True)
STATE_SPACE = ModelShape("mamba2", 64, 16, 100, True, (LayerShape(0, 0, 0, 8, 16),) * 2, mixer=MIXER)
VOID = {"br", "meta", "path", "use", "rect", "image", "circle", "hr", "img"}


def measurement(precision: str, tpot_s: float) -> Measurement:
    return Measurement(
        artifact="x", profile="box", host={"processor": "Test CPU"}, runtime="openvino", precision=precision, threads=2,
        workload=Workload(1, 16, 4), ttft_s=(0.01, 0.012, 0.011),
        itl_s=tuple(tpot_s * share for share in (1, 1.1, 1.2) * 3),
        load_s=(0.1,) * 3, weights_bytes=9, peak_rss_bytes=3 << 20, rss_rise_bytes=1, versions={"openvino": "2026.4.1"},
        options={"NUM_STREAMS": "1"},
    )  # fmt: skip


def manifest(*, measured: bool = True) -> Manifest:
    """A speed-up of 1.25 that took two rounds; or the same as a prediction."""
    candidates = tuple(
        Candidate(
            name, precision, 1000, perplexity, measurement(precision, seconds) if measured else None,
            predicted_s=None if measured else seconds, delivered=(name, precision) == ("pruned", "int8"),
        )
        for name, precision, perplexity, seconds in (
            ("dense", "fp32", 10.0, 2e-3), ("dense", "int8", 10.1, 1e-3), ("pruned", "int8", 12.0, 0.7e-3),
        )
    )  # fmt: skip
    turns = (
        Round("int8", 7e-4, 0.8e-3, 0.9e-3, 11.0, False, 0.8e-3),
        Round("int8", 6e-4, 0.78e-3, 0.741e-3, 12.0, True, 0.8e-3),
    )
    front = (PredictedPoint(5e-4, 1.0), PredictedPoint(4e-4, 1.1), PredictedPoint(3e-4, 1.4))
    return Manifest(
        command="prune-export --target-speedup 1.25x", created="2026-01-01T00:00:00+00:00", source="org/model",
        source_digest="a" * 64, shape=PLAN.target, dense_parameters=DENSE.parameters(),
        formats=("openvino", "checkpoint"), precision="int8", target=Target("tpot", None, speedup=1.25), limit=0.8e-3,
        claim="measured" if measured else "predicted", met=True, figure=0.75e-3, profile="box", plan_digest="c" * 64,
        calibration={"name": "words", "digest": "d" * 64}, evaluation={"name": "others", "digest": "e" * 64}, seed=42,
        candidates=candidates, rounds=turns if measured else (),
        parity=ParityRecord(1e-5, 1e-4, {"prefill": 1e-5}, 8, 1.0),
        versions={"torch": "2.13.0", "openvino": "2026.4.1"}, speedups=(1.33,) * 3 if measured else (), front=front,
        workload=Workload(1, 16, 4), timings_s={"dense: measuring": 3.0}, peak_tree_bytes=1 << 30,
        peak_tree_phase="dense: measuring", phases_bytes={"dense: measuring": 1 << 30},
        samples={"prompt": "see https://example.org/ <b>", "dense": "d", "delivered": "p"},
    )  # fmt: skip


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A directory as the main job leaves it, with next to nothing in it."""
    directory = tmp_path / "artifact"
    directory.mkdir()
    (directory / "weights.bin").write_bytes(b"123")
    PLAN.save(directory / PLAN_FILE)
    made = replace(manifest(), files=file_records(directory, besides=MANIFEST))
    made.save(directory)
    write_report(directory)
    with_report_files(made, directory).save(directory)
    return directory


class _Page(HTMLParser):
    """What a page refers to, which ids it has, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "aria-labelledby":
                self.named += (value or "").split()
            if name.startswith("on"):
                self.links.append(f"{name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def text_of(made: Manifest, plan: PrunePlan | None) -> str:
    return render(made, plan, drawn(made, plan))


def test_nothing_outside_is_referred_to_and_every_figure_has_words() -> None:
    text = text_of(manifest(), PLAN)
    page = _Page(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    for word in ("@import", "<script", "<link", "<iframe", "<object", "<img", "xmlns"):
        assert word not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    # The only address is the one in the sample's text.
    assert re.findall(r"https?://[^ <]*", text) == ["https://example.org/"]
    assert "see https://example.org/ &lt;b&gt;" in text
    assert page.tags["svg"] == page.tags["figcaption"] == 5
    assert len(page.ids) == len(set(page.ids))
    assert set(page.named) <= set(page.ids)
    assert len(page.named) == 2 * page.tags["svg"]


def test_figures_follow_the_pages_colours() -> None:
    text = text_of(manifest(), PLAN)
    body = text[text.index("<body>") :]
    names = ("ink", "paper", "rule", "dense", "pruned", "sparse", "limit", "predicted")
    used = set(re.findall(r"(?:fill|stroke|color): ?([^;\"]+)", body))
    assert used <= {"none", *(f"var(--{name})" for name in names)}
    for name in set(re.findall(r"var\(--(\w+)\)", text)):
        assert len(re.findall(rf"--{name}:#", text)) == 2  # light and dark
    assert 'name="viewport" content="width=device-width' in text


def test_the_provenance_is_whole(artifact: Path) -> None:
    text = (artifact / "report.html").read_text()
    found = Manifest.load(artifact)
    for part in (
        *(found.command, found.source_digest, found.plan_digest, PLAN.calibration_digest, "fast search &lt;of&gt; 7"),
        *("name words, digest " + "d" * 64, "name others, digest " + "e" * 64, "processor Test CPU", "NUM_STREAMS 1"),
        *("<dt>threads</dt><dd>2</dd>", "<dt>torch</dt><dd>2.13.0</dd>", "<dt>profile</dt><dd>box</dd>"),
        *("fitted again on the calibration text", found.files["weights.bin"].sha256, found.files[PLAN_FILE].sha256),
    ):
        assert part in text


def test_the_rounds_are_shown_with_their_errors() -> None:
    assert predicted_pairs(manifest()) == [("round 1", 0.8e-3, 0.9e-3), ("round 2", 0.78e-3, 0.741e-3)]
    pictures = drawn(manifest(), PLAN)
    assert "round 1 +12.5%; round 2 -5.0%" in pictures["predictions"].text
    assert "Round 2: predicted 780 us, measured 741 us, perplexity 12.00." in pictures["pareto"].text
    assert "pruned int8 (delivered) at 750 us" in pictures["pareto"].text  # as the claim has it, not over all samples
    text = text_of(manifest(), PLAN)
    assert '<td class="left">int8</td><td>700 us</td><td>800 us</td><td>900 us</td><td>+12.5%</td>' in text


def test_a_prediction_has_no_measured_figures() -> None:
    made = manifest(measured=False)
    assert list(drawn(made, PLAN)) == ["pareto", "layers"]
    assert "latencies are predicted" in text_of(made, PLAN)
    later = replace(
        made, candidates=(*made.candidates[:2], replace(made.candidates[2], measurement=measurement("int8", 0.6e-3)))
    )
    ((name, predicted, found),) = predicted_pairs(later)
    assert (name, predicted, found) == ("pruned int8", 0.7e-3, pytest.approx(0.72e-3))


def test_the_predicted_front_starts_at_the_dense_model() -> None:
    """The table says 0.5 ms of dense, which takes 1 ms in the round that decides: limit by speed-up."""
    front = predicted_front(manifest())
    assert front == [
        (pytest.approx(1e-3), pytest.approx(10.1)),
        (pytest.approx(0.8e-3), pytest.approx(11.11)),
        (pytest.approx(0.6e-3), pytest.approx(14.14)),
    ]
    assert "other budgets" in text_of(manifest(), PLAN)
    assert predicted_front(replace(manifest(), front=())) == []


def test_a_device_without_noise_can_be_drawn() -> None:
    made = manifest()
    steady = tuple(
        replace(item, measurement=replace(measurement(item.precision, 1e-3), itl_s=(1e-3,) * 9))
        for item in made.candidates
    )
    text = drawn(replace(made, candidates=steady), PLAN)["distribution-tpot"].text
    assert text.startswith("time per output token: dense fp32 p50 1.00 ms, p90 1.00 ms of 9 samples; dense int8")


@pytest.mark.parametrize(("limit", "words"), [(1.0, "limit: far to the right"), (1e-6, "limit: far to the left")])
def test_a_limit_far_from_every_figure_is_mentioned_not_drawn(limit: float, words: str) -> None:
    made = replace(manifest(), target=Target("tpot", limit), limit=limit, speedups=(), rounds=())
    pictures = drawn(made, PLAN)
    for name in ("pareto", "distribution-tpot"):
        assert f">{words}</text>" in pictures[name].svg()
        (axes,) = pictures[name].figure.axes
        assert axes.get_xlim()[1] < 10.0  # ms


def test_a_memory_target_is_drawn_in_memory() -> None:
    made = replace(manifest(), target=Target("memory", 4 << 20), limit=4 << 20, speedups=(), rounds=())
    text = drawn(made, PLAN)["pareto"].text
    assert text.startswith("peak memory against held-out perplexity: dense fp32 at 3.00 MiB")


def test_layers_are_counted_not_only_shared() -> None:
    attention, mlp = parts_of(PLAN)
    assert (attention.kept, attention.dense) == ((2, 1, 0), (2, 2, 2))
    assert attention.summary == "3 of 6 KV heads kept, none in 1 of 3 layers"
    assert (mlp.kept, mlp.dense) == ((48, 0, 96), (96, 96, 96))
    head, body = rows(PLAN)
    assert head == ("layer", "KV heads", "MLP channels")
    assert body[1] == ("1", "1 of 2", "0 of 96")
    assert ">48</text>" in drawn(manifest(), PLAN)["layers"].svg()


def test_mixers_are_in_the_layer_picture() -> None:
    keep = (LayerKeep((), (), tuple(range(5)), recurrence=False), keep_all(STATE_SPACE)[1])
    plan = PrunePlan("m", "a" * 64, STATE_SPACE, keep, "x", "parameters", "b" * 64)
    (mixer,) = parts_of(plan)
    assert (mixer.kept, mixer.dense, mixer.without_recurrence) == ((5, 8), (8, 8), (0,))
    assert "heads of each group" in mixer.title
    assert rows(plan)[1] == [("0", "5 of 8, no recurrence"), ("1", "8 of 8")]
    assert ">5</text>" in drawn(manifest(), plan)["layers"].svg()


def test_many_layers_keep_their_table() -> None:
    shape = DENSE.with_layers((LayerShape(4, 2, 96),) * 60)
    plan = PrunePlan("m", "a" * 64, shape, keep_all(shape), "x", "parameters", "b" * 64)
    svg = drawn(manifest(), plan)["layers"].svg()
    assert svg.count(">96</text>") == 1  # the axis: numbers above sixty bars would run into each other
    assert len(rows(plan)[1]) == 60


def test_figures_lie_beside_the_page_and_are_sealed(artifact: Path) -> None:
    names = {path.name for path in (artifact / "figures").iterdir()}
    assert names == {
        *("pareto.png", "layers.png", "distribution-tpot.png", "distribution-ttft.png", "predictions.png"),
    }
    for name in names:
        assert (artifact / "figures" / name).read_bytes().startswith(b"\x89PNG\r\n")
    check_seal(artifact / MANIFEST)
    found = Manifest.load(artifact)
    check_files(artifact, found.files, besides=MANIFEST)
    assert f"figures/{min(names)}" in found.files


def test_remaking_gives_the_same_bytes_and_mends_what_is_missing(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()}
    assert cli.main(["report", str(artifact)]) == 0
    assert capsys.readouterr().out.strip() == str(artifact / "report.html")
    assert {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()} == before
    # As an earlier version left it: another page, no figures, one that is no longer drawn.
    (artifact / "report.html").write_text("old")
    for path in (artifact / "figures").iterdir():
        path.unlink()
    (artifact / "figures" / "old.png").write_bytes(b"")
    with_report_files(Manifest.load(artifact), artifact).save(artifact)
    remake_report(artifact)
    assert {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()} == before
    check_files(artifact, Manifest.load(artifact).files, besides=MANIFEST)


def test_an_edited_manifest_is_not_sealed_anew(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = artifact / MANIFEST
    path.write_text(path.read_text().replace('"met": true', '"met": false', 1))
    page = (artifact / "report.html").read_bytes()
    assert cli.main(["report", str(artifact)]) == BadInputError.exit_code
    assert "manifest.json was edited after it was written" in capsys.readouterr().err
    assert (artifact / "report.html").read_bytes() == page


def test_a_manifest_without_a_seal_gets_no_report(artifact: Path) -> None:
    path = artifact / MANIFEST
    data = {key: value for key, value in json.loads(path.read_text()).items() if key != SEAL}
    path.write_text(json.dumps(data))
    (artifact / "report.html").unlink()
    with pytest.raises(BadInputError, match="has no content_digest: it was edited"):
        remake_report(artifact)
    assert not (artifact / "report.html").exists()
    assert json.loads(path.read_text()) == data


def test_what_the_report_does_not_own_keeps_its_hash(artifact: Path) -> None:
    """A report made anew must not hide that a delivered file changed."""
    (artifact / "weights.bin").write_bytes(b"124")
    (artifact / "report.html").write_text("old")
    remake_report(artifact)
    with pytest.raises(BadInputError, match=r"\(changed: weights\.bin\)"):
        check_files(artifact, Manifest.load(artifact).files, besides=MANIFEST)
