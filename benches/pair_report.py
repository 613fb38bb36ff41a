"""What two trainings in turn say: time to the same held-out loss, as JSON, as a table and as a picture."""

import json
import math
import statistics

from pairs import interval
from train_curve import EARLY, svg_line, svg_text, write_svg
from turns import own_seconds

EARLY_BOUND = 1e-3  # on the first steps, in float32; the learning rate is four times that of train_curve.py's example
OURS, PEER = "#1b4f9c", "#d95f02"
TARGETS = (0.1, 0.25, 0.5, 0.75, 1.0)


def curve(seconds, records):
    """(training seconds, held-out loss, step) of each validation."""
    total, points = 0.0, []
    for second, record in zip(seconds, records):
        total += second
        if record.get("val_loss") is not None:
            points.append((total, record["val_loss"], record["step"]))
    return points


def time_to(points, loss):
    """Training seconds to a held-out loss, on the line between two validations; None where it was not reached."""
    before = None
    for at in points:
        if at[1] <= loss:
            if before is None:
                return at[0]
            return before[0] + (at[0] - before[0]) * (before[1] - loss) / (before[1] - at[1])
        before = at
    return None


def targets(one, other):
    """Held-out losses that both reach: after some shares of the steps, rounded up."""
    worst = [max(p[1], q[1]) for p, q in zip(one, other)]
    least = max(min(p[1] for p in points) for points in (one, other))
    losses = {math.ceil(100 * worst[max(round(share * len(worst)) - 1, 0)] - 1e-9) / 100 for share in TARGETS}
    return sorted((loss for loss in losses if loss >= least), reverse=True)


def of_program(program, tokens):
    seconds, held = own_seconds(program)
    points = curve(seconds, program.records)
    out = {"training_s": sum(seconds), "step_s": statistics.median(seconds), "tok_s": tokens * len(seconds) / sum(seconds),
           "active_s": program.active, "other_s": program.active - sum(seconds), "stops": len(program.stops), "held_up_from_outside": held,
           "peak_rss_mb": program.peak_mb, "peak_rss_mb_to_the_first_turns_end": program.start_peak_mb,
           "held_out": [{"step": step, "training_s": at, "loss": loss} for at, loss, step in points]}
    if gpu := program.records[-1].get("peak_gpu_mb"):
        out["peak_gpu_mb"] = gpu
    elif program.gpu_mib:
        out["gpu_mib"] = program.gpu_mib
    return out, points


def difference(ours, peer, key, steps):
    """The largest, and its step."""
    pairs = [(abs(p[key] - q[key]), p["step"]) for p, q in zip(ours[:steps], peer[:steps]) if p.get(key) is not None and q.get(key) is not None]
    return max(pairs, default=(math.nan, 0))


def plot(path, ours, peer, title):
    """Held-out loss over training time."""
    width, high, left, top = 860, 380, 60, 40
    points = ours + peer
    end, floor, ceiling = max(p[0] for p in points) / 60, min(p[1] for p in points), max(p[1] for p in points)
    floor, ceiling = floor - 0.03 * (ceiling - floor), ceiling + 0.03 * (ceiling - floor)
    x = lambda minutes: left + minutes / end * (width - left - 30)
    y = lambda loss: top + (ceiling - loss) / (ceiling - floor) * high
    parts = [svg_text(left, 20, title)]
    step = 10 ** math.floor(math.log10(end))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if end / s <= 8)
    for k in range(int(end / step) + 1):
        parts += [svg_line([(x(k * step), top), (x(k * step), top + high)], 'stroke="#eee"'),
                  svg_text(x(k * step), top + high + 18, f"{k * step:g}", 'text-anchor="middle"')]
    for k in range(6):
        loss = floor + k * (ceiling - floor) / 5
        parts += [svg_line([(left, y(loss)), (width - 30, y(loss))], 'stroke="#eee"'),
                  svg_text(left - 6, y(loss) + 4, f"{loss:.2f}", 'text-anchor="end"')]
    parts.append(svg_text((left + width) / 2, top + high + 36, "minutes of training, its own", 'text-anchor="middle"'))
    for i, (name, color, line) in enumerate((("PyTorch, torch.compile", PEER, peer), ("recua", OURS, ours))):
        at = [(x(p[0] / 60), y(p[1])) for p in line]
        parts += [svg_line(at, f'stroke="{color}" stroke-width="1.6"')]
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{color}"/>' for px, py in at]
        parts.append(svg_text(width - 40, top + 20 + 18 * i, f"{name}: {line[-1][0] / 60:.1f} min", f'text-anchor="end" fill="{color}"'))
    write_svg(path, width, top + high + 48, parts)


def table(result):
    ours, peer = result["recua"], result["torch"]
    lines = ["| held-out loss | recua, s | PyTorch, s | PyTorch / recua |", "|---|---|---|---|"]
    lines += [f"| {row['loss']:.2f} | {row['recua_s']:.1f} | {row['torch_s']:.1f} | {row['ratio']:.2f} |" for row in result["to_loss"]]
    lines += ["", "| | recua | PyTorch |", "|---|---|---|"]
    rows = [("tokens a second of training", "tok_s", ".0f"), ("median step, s", "step_s", ".4f"), ("training, s", "training_s", ".1f"),
            ("start-up, validation and the rest, s", "other_s", ".1f"), ("peak RSS in training, MB", "peak_rss_mb", "d"),
            ("peak RSS to the end of the first turn, MB", "peak_rss_mb_to_the_first_turns_end", "d"), ("peak of the GPU's memory, MB", "peak_gpu_mb", "d"),
            ("GPU memory held, MiB", "gpu_mib", "d"), ("steps held up from outside", "held_up_from_outside", "d")]
    show = lambda value, form: "-" if value is None else format(value, form)
    lines += [f"| {name} | {show(ours.get(key), form)} | {show(peer.get(key), form)} |" for name, key, form in rows if key in ours or key in peer]
    start = result["torch_start"]
    lines += ["", f"{result['steps']} steps. PyTorch / recua between two validations, {len(result['ratios'])} pairs, median and 95 %: {result['paired_ratio']}.",
              f"Largest difference at equal steps: training loss {result['early_difference'][0]:.1e} in steps 1 to {result['early_steps']}, "
              f"{result['train_difference'][0]:.1e} in all (step {result['train_difference'][1]}); "
              f"held-out loss {result['held_out_difference'][0]:.1e} (step {result['held_out_difference'][1]}).",
              f"PyTorch {start['torch']} loaded in {start['load_s']:.0f} s and compiled in {start['compile_s']:.0f} s ({', '.join(start['helped']) or 'as pip gives it'}). {result['machine']}; {result['recua_version']}."]
    return "\n".join(lines) + "\n"


def report(out, facts, ours, peer):
    """Writes pair.json, pair.md and pair.svg; the exit code."""
    settings = facts["settings"]
    one, points = of_program(ours, settings["batch"] * settings["seq_len"])
    other, peer_points = of_program(peer, settings["batch"] * settings["seq_len"])
    if len(ours.records) != len(peer.records) or [p[2] for p in points] != [p[2] for p in peer_points]:
        raise SystemExit(f"recua made {len(ours.records)} steps, PyTorch {len(peer.records)}, or they validated at others")
    rows = [(loss, time_to(points, loss), time_to(peer_points, loss)) for loss in targets(points, peer_points)]
    between = lambda line: [b[0] - a[0] for a, b in zip([(0.0,), *line], line)]
    ratios = [q / p for p, q in zip(between(points), between(peer_points))]
    early = min(EARLY + 1, len(ours.records))
    result = facts | {
        "recua_version": facts["recua"], "recua": one, "torch": other, "steps": len(ours.records),
        "to_loss": [{"loss": loss, "recua_s": a, "torch_s": b, "ratio": b / a} for loss, a, b in rows],
        "ratios": ratios, "paired_ratio": interval(ratios), "early_steps": early,
        "early_difference": difference(ours.records, peer.records, "loss", early),
        "train_difference": difference(ours.records, peer.records, "loss", None),
        "held_out_difference": difference(ours.records, peer.records, "val_loss", None)}
    (out / "pair.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "pair.md").write_text(table(result))
    plot(out / "pair.svg", points, peer_points, f"held-out loss, nats a token, over training time; {result['steps']} steps, {facts['machine']}")
    print((out / "pair.md").read_text(), end="")
    if settings["bf16"]:
        return 0
    if not result["early_difference"][0] <= EARLY_BOUND:
        print(f"the first steps differ by more than {EARLY_BOUND:.0e}: these are not the same trainings")
        return 1
    return 0
