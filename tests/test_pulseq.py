"""Pulseq files, written by PyPulseq itself, as acquisitions."""

import numpy as np
import pytest

import spinverse
from spinverse import Acquisition, Tissue, cli, mesh
from spinverse.acquisition import (
    Sampled,
    SampledGradient,
    StimulatedEcho,
    TrapezoidPGSE,
    read_acquisition,
    read_pulseq,
    read_signals,
)
from spinverse.errors import InputError
from spinverse.units import GAMMA

pp = pytest.importorskip("pypulseq", reason="pypulseq is not installed (spinverse[pulseq])")

SYSTEM = pp.Opts(max_grad=400, grad_unit="mT/m", max_slew=2000, slew_unit="T/m/s")
HERTZ = GAMMA / (2e3 * np.pi)  # Hz/m for each mT/m
RAMP, DELTA, BIG_DELTA = 1.0, 8.0, 25.0  # ms
RF = 1.0  # ms, length of all pulses
EXCITATION, REFOCUSING = (np.pi / 2, "excitation"), (np.pi, "refocusing")


class Writer:
    """Events at times in ms; a repetition is what ``play`` has of them."""

    def __init__(self):
        self.sequence = pp.Sequence(SYSTEM)
        self.end = 0.0

    def play(self, time, *events):
        """Events in a block that starts at ``time``."""
        if time > self.end + 1e-9:
            self.sequence.add_block(pp.make_delay(round((time - self.end) * 1e-3, 9)))
        self.sequence.add_block(*events)
        self.end = time + 1e3 * pp.calc_duration(*events)

    def pulse(self, centre, angle, use, *more):
        self.play(centre - RF / 2, pp.make_block_pulse(angle, duration=RF * 1e-3, use=use,
                                                       system=SYSTEM), *more)

    def gradient(self, time, mT_m, delta=DELTA, ramp=RAMP):
        """A trapezoid along a vector, of the area delta times mT_m."""
        lobes = [trapezoid(axis, value, delta, ramp) for axis, value in zip("xyz", mT_m,
                                                                            strict=True) if value]
        self.play(time, *(lobes or [pp.make_delay((delta + ramp) * 1e-3)]))

    def listen(self, centre, *more, samples=64, dwell=20e-6):
        self.play(centre - 1e3 * samples * dwell / 2, pp.make_adc(
            samples, dwell=dwell, system=SYSTEM), *more)

    def write(self, path, **options):
        self.sequence.write(str(path), **options)
        return path


def trapezoid(axis, mT_m, delta, ramp):
    return pp.make_trapezoid(axis, amplitude=mT_m * HERTZ, rise_time=ramp * 1e-3,
                             flat_time=(delta - ramp) * 1e-3, fall_time=ramp * 1e-3, system=SYSTEM)


def spin_echoes(path, gradients, TE=60.0, first=13.0, use="refocusing", excite=(EXCITATION,),
                **options):
    """Spin echoes with a pair of trapezoids each; the ADC hears without a gradient."""
    file, TR = Writer(), 100.0
    for row, vector in enumerate(gradients):
        start = 5.0 + row * TR
        for k, pulse in enumerate(excite):
            file.pulse(start - 2 * (len(excite) - 1 - k), *pulse)
        file.gradient(start + first, vector)
        file.pulse(start + TE / 2, np.pi, use)
        file.gradient(start + first + BIG_DELTA, vector)
        file.listen(start + TE)
    return file.write(path, **options)


def refuses(path, *arguments, match):
    with pytest.raises(InputError, match=match) as error:
        read_pulseq(path, *arguments)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.mpi
def test_spin_echo_has_the_b_and_signals_of_trapezoids(tmp_path, comm):
    """Closed form of b; directions and units; one waveform for all rows."""
    strengths = np.array([0.0, 50.0, 120.0, 300.0])
    unit = np.array([2.0, -1.0, 2.0]) / 3.0
    path = spin_echoes(tmp_path / f"{comm.rank}.seq", strengths[:, None] * unit)
    table = read_acquisition(path)
    assert [type(waveform) for waveform in table.waveforms] == [Sampled]
    assert table.waveforms[0].refocusing_times == (30.0,) and table.waveforms[0].antisymmetric
    delta, big, ramp = (1e-3 * t for t in (DELTA, BIG_DELTA, RAMP))
    b = 1e-6 * (GAMMA * 1e-3 * strengths)**2 * (
        delta**2 * (big - delta / 3) + ramp**3 / 30 - delta * ramp**2 / 6)
    np.testing.assert_allclose(table.b, b, rtol=1e-5)  # six digits in the file
    np.testing.assert_allclose(table.gradient_strength_mT_m, strengths, rtol=1e-5)
    np.testing.assert_allclose(table.directions[1:], [unit] * 3, atol=1e-5)
    np.testing.assert_allclose(table.echo_time, 60.0, rtol=1e-12)
    ours = Acquisition.from_gradient(TrapezoidPGSE(DELTA, BIG_DELTA, RAMP), strengths, unit)
    tissue = Tissue(mesh.build(mesh.tagged_grid, mesh.Ball(7), 20, cells=2, comm=comm))
    np.testing.assert_allclose(
        spinverse.simulate(tissue, table, tolerance=1e-6).normalised,
        spinverse.simulate(tissue, ours, tolerance=1e-6).normalised, atol=1e-4)


def test_three_axes_with_slice_and_readout(tmp_path):
    """The full effective gradient counts: selection, crushers, a readout; b by plain sums."""
    file, TE, vector = Writer(), 60.0, (0.0, 80.0, 0.0)
    select = trapezoid("z", 20.0, 2.0, 0.5)  # 2.5 ms, the pulse in its middle
    crush = trapezoid("z", 30.0, 2.0, 0.5)
    prephase = trapezoid("x", 10.0, 2.0, 0.5)
    readout = trapezoid("x", 10.0, 4.0, 0.5)

    def selecting(centre, angle, use):
        pulse = pp.make_block_pulse(angle, duration=RF * 1e-3, use=use, system=SYSTEM,
                                    delay=(1.25 - RF / 2) * 1e-3)
        file.play(centre - 1.25, pulse, select)

    selecting(5.0, *EXCITATION)
    file.play(7.0, trapezoid("z", -20.0, 1.0, 0.5), prephase)
    file.gradient(15.0, vector)
    file.play(26.0, crush)
    selecting(35.0, *REFOCUSING)
    file.play(40.0, crush)
    file.gradient(43.0, vector)
    file.play(65.0 - 2.25, readout, pp.make_adc(
        64, dwell=50e-6, delay=0.65e-3, system=SYSTEM))
    table = read_pulseq(file.write(tmp_path / "a.seq"))
    waveform, = table.waveforms
    assert type(waveform) is SampledGradient and waveform.echo_time == pytest.approx(TE, abs=1e-3)
    # the same on a fine grid of time
    t = np.linspace(5.0, 65.0, 600001)
    G = np.zeros((t.size, 3))
    for axis, start, mT_m, delta, sign in [
            (2, 3.75, 20, 2, 1), (2, 7, -20, 1, 1), (0, 7, 10, 2, 1), (1, 15, 80, DELTA, 1),
            (2, 26, 30, 2, 1), (2, 40, 30, 2, -1), (1, 43, 80, DELTA, -1), (0, 62.75, 10, 4, -1)]:
        ramp = RAMP if axis == 1 else 0.5
        corners = start + np.array([0.0, ramp, delta, delta + ramp])
        G[:, axis] += sign * np.interp(t, corners, [0.0, mT_m, mT_m, 0.0])
    both = np.interp(t, [33.75, 34.25, 35.75, 36.25], [0.0, 20.0, 20.0, 0.0])
    G[:, 2] += np.where(t < 35.0, both, -both)
    step = 1e-3 * (t[1] - t[0])
    F = 1e-3 * GAMMA * step * (np.cumsum(G, axis=0) - 0.5 * G - 0.5 * G[0])
    assert np.max(np.abs(F[-1])) < 1e-4 * np.max(np.abs(F))
    tensor = 1e-6 * step * (F.T @ F)
    np.testing.assert_allclose(table.b_tensors[0], tensor, atol=1e-4 * tensor.max())
    with pytest.warns(UserWarning, match="measurements are b = 0"):
        assert read_acquisition(tmp_path / "a.seq", b0_threshold=2 * table.b[0]).b == [0.0]


def test_echo_is_at_the_centre_of_k_space(tmp_path):
    """Between two samples of an ADC that is not centred on it."""
    file = Writer()
    file.pulse(5.0, *EXCITATION)
    file.play(8.0, trapezoid("x", 10.0, 2.0, 0.5))
    file.gradient(12.0, (0, 0, 90.0))
    file.pulse(35.0, *REFOCUSING)
    file.gradient(40.0, (0, 0, 90.0))
    # the readout has the area of the first gradient 2.25 ms after its start
    file.play(61.0, trapezoid("x", 10.0, 6.0, 0.5),
              pp.make_adc(100, dwell=23e-6, delay=1.2e-3, system=SYSTEM))
    table = read_pulseq(file.write(tmp_path / "a.seq"))
    assert table.echo_time[0] == pytest.approx(61.0 + 0.25 + 2.0 - 5.0, abs=1e-5)


def test_stimulated_echo(tmp_path):
    """Three pulses of 90 degrees store; crushers in between do not count."""
    unit, strengths = np.array([0.0, 0.6, 0.8]), np.array([50.0, 100.0])
    for name, uses in (("a", ["excitation"] * 3), ("b", ["excitation", "other", "other"])):
        file = Writer()
        for row, strength in enumerate(strengths):
            start = 5.0 + 100.0 * row
            file.pulse(start, np.pi / 2, uses[0])
            file.gradient(start + 1, strength * unit)
            file.pulse(start + 12, np.pi / 2, uses[1])
            file.gradient(start + 13, (50.0, 0, 0), delta=4.0)
            file.pulse(start + 40, np.pi / 2, uses[2])
            file.gradient(start + 41, strength * unit)
            file.listen(start + 52)
        table = read_pulseq(file.write(tmp_path / f"{name}.seq"))
        waveform, = table.waveforms
        assert waveform.storage == ((12.0, 40.0),) and waveform.echo_time == pytest.approx(52.0)
        trapezoids = Acquisition.from_gradient(TrapezoidPGSE(DELTA, 40.0, RAMP), strengths, unit)
        np.testing.assert_allclose(table.b, trapezoids.b, rtol=2e-5)
        stimulated = StimulatedEcho(DELTA, 40.0, 28.0, 52.0)
        assert waveform.same_at_rest(stimulated)


def test_what_is_left_at_the_echo_is_taken_off(tmp_path):
    """Phase encoding: said in a line, up to 1 % of the gradients' area."""
    for area, message in ((0.05, None), (1.0, "expected up to 0.01")):
        file = Writer()
        for row in range(2):
            start = 5.0 + 100.0 * row
            file.pulse(start, *EXCITATION)
            file.gradient(start + 5, (100.0, 0, 0))
            file.gradient(start + 15, (0, 10.0 * row * area, 0))
            file.pulse(start + 30, *REFOCUSING)
            file.gradient(start + 35, (100.0, 0, 0))
            file.listen(start + 60)
        path = file.write(tmp_path / f"{area}.seq")
        if message:
            refuses(path, match=message)
            continue
        with pytest.warns(UserWarning, match="0.0025 of the gradients' area is left at the echo"):
            table = read_pulseq(path)
        for waveform in table.waveforms:
            assert np.max(np.abs(waveform.integral(waveform.echo_time))) < 1e-12
        np.testing.assert_allclose(table.b[1], table.b[0], rtol=1e-5)


def test_uses_that_a_file_does_not_say(tmp_path):
    """Flip angles say it, as in version 1.4; dummy excitations are no rows."""
    vectors = [(0, 0, 0), (100.0, 0, 0)]
    plain = read_pulseq(spin_echoes(tmp_path / "a.seq", vectors))
    for name, options in (("b", {"use": "undefined"}), ("c", {"excite": (EXCITATION,) * 2}),
                          ("d", {"v141_compat": True})):
        assert read_pulseq(spin_echoes(tmp_path / f"{name}.seq", vectors, **options)) == plain


def test_in_a_run_file(tmp_path, capsys):
    spin_echoes(tmp_path / "a.seq", [(0, 0, 0), (100.0, 0, 0)])
    run = tmp_path / "run.yaml"
    run.write_text("mesh: {builder: intervals, thicknesses_um: [3, 5], cells_per_layer: 4}\n"
                   "tissue: {permeability: {membrane_m_per_s: 2e-5}}\nacquisition: {file: a.seq}\n")
    assert cli.main(["simulate", str(run), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Sampled, 10 samples, 180-degree pulses at 30 ms, TE 60 ms" in said, said
    signals = read_signals(tmp_path / "out" / "signals.csv")
    assert signals.acquisition == read_pulseq(tmp_path / "a.seq")
    assert 0.1 < signals.normalised[1] < 1.0
    run.write_text(run.read_text().replace("a.seq", "a.seq, Delta_ms: 20"))
    assert cli.main(["simulate", str(run), "-o", str(tmp_path / "no")]) == 2
    assert "Delta: given, but a Pulseq file has its own times" in capsys.readouterr().err


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    refuses(tmp_path / "none.seq", match="there is no such file")
    (tmp_path / "text.seq").write_text("b, x, y, z\n0 0 0 0\n")
    refuses(tmp_path / "text.seq", match="cannot be read as Pulseq")
    (tmp_path / "empty.seq").write_text("")
    refuses(tmp_path / "empty.seq", match="cannot be read as Pulseq")
    whole = spin_echoes(tmp_path / "a.seq", [(0, 0, 0), (100.0, 0, 0)])
    text = whole.read_text()
    (tmp_path / "cut.seq").write_text(text[: text.index("[SHAPES]")])
    refuses(tmp_path / "cut.seq", match="cannot be read as Pulseq")
    refuses(spin_echoes(tmp_path / "b.seq", [(0, 0, 0)]), match="no gradient between excitation")
    refuses(spin_echoes(tmp_path / "c.seq", [(9.0, 0, 0)], use="inversion"),
            match="inversion pulse of 180 degrees at 35 ms, between excitation and echo")
    refuses(spin_echoes(tmp_path / "d.seq", [(9.0, 0, 0)], use="excitation"),
            match="row 0, excitation at 35 ms: the ADC comes no closer")
    file = Writer()
    file.pulse(5.0, *EXCITATION)
    refuses(file.write(tmp_path / "e.seq"), match="has no ADC")
    file = Writer()
    file.listen(5.0)
    refuses(file.write(tmp_path / "f.seq"), match="no excitation has an ADC after it")
    with pytest.raises(InputError, match="delta: given, but a Pulseq file has its own times"):
        read_acquisition(whole, delta=5)
    monkeypatch.setitem(__import__("sys").modules, "pypulseq", None)
    with pytest.raises(InputError, match=r"pip install 'spinverse\[pulseq\]'"):
        read_pulseq(whole)
