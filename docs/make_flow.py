# SPDX-License-Identifier: BSD-3-Clause
"""Draw docs/flow.svg: what happens to a sample from the file to the answer.

python docs/make_flow.py
"""

from pathlib import Path

BOXES = [
    ("inputs", ["paths, images,", "arrays: ImageSequence", "decoded in threads"]),
    ("backbone", ["frozen network,", "by name;", "loaded once"]),
    ("tokens", ["TokenArray (n, L, d)", "lazy: computed when", "a pooling streams it"]),
    ("pooling", ["kernel on the device,", "masks respected,", "(n, L, d) to (n, d')"]),
    ("vectors", ["L2, power, whitening", "from moments", "(n, d') to (n, k)"]),
    ("classifier", ["class moments or", "an index of rows;", "partial_fit, forget"]),
]
WIDTH, HEIGHT, GAP, TOP = 168, 92, 26, 56


def main() -> None:
    """Write the picture."""
    total = len(BOXES) * (WIDTH + GAP) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} 250" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{total}" height="250" fill="white"/>',
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="#444"/>'
        "</marker></defs>",
    ]
    colors = ["#e8eef7", "#dbe7f5", "#cfe0f2", "#e3f1e3", "#e3f1e3", "#fbeedd"]
    for i, ((title, lines), color) in enumerate(zip(BOXES, colors, strict=True)):
        x = 20 + i * (WIDTH + GAP)
        parts.append(
            f'<rect x="{x}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{color}" '
            'stroke="#7a8899"/>'
            f'<text x="{x + WIDTH / 2}" y="{TOP + 22}" text-anchor="middle" font-weight="bold" '
            f'font-size="15">{title}</text>'
        )
        for j, line in enumerate(lines):
            parts.append(
                f'<text x="{x + WIDTH / 2}" y="{TOP + 43 + 17 * j}" text-anchor="middle" '
                f'font-size="12.5">{line}</text>'
            )
        if i:
            parts.append(
                f'<line x1="{x - GAP + 2}" y1="{TOP + HEIGHT / 2}" x2="{x - 2}" '
                f'y2="{TOP + HEIGHT / 2}" stroke="#444" stroke-width="1.6" marker-end="url(#a)"/>'
            )
    left = 20 + (WIDTH + GAP)
    store_y, store_width = 192, 4 * WIDTH + 3 * GAP
    parts.append(
        f'<rect x="{left}" y="{store_y}" width="{store_width}" height="42" rx="8" fill="#f4f0fa" '
        'stroke="#8a7aa8"/>'
        f'<text x="{left + store_width / 2}" y="{store_y + 18}" text-anchor="middle" '
        'font-weight="bold" font-size="13.5">store: FeatureStore on disk, or a cache in memory'
        f'</text><text x="{left + store_width / 2}" y="{store_y + 34}" text-anchor="middle" '
        'font-size="12">one row per sample, network and layer (and pooling): each computed once'
        "</text>"
    )
    for column in (2, 3):
        x = 20 + column * (WIDTH + GAP) + WIDTH / 2
        parts.append(
            f'<line x1="{x}" y1="{TOP + HEIGHT + 3}" x2="{x}" y2="{store_y - 3}" stroke="#8a7aa8" '
            'stroke-width="1.6" marker-start="url(#a)" marker-end="url(#a)"/>'
        )
    brackets = [(0, 3, "one pass over the inputs"), (3, 4, "on the device"), (4, 6, "moments")]
    for first, last, text in brackets:
        x1 = 20 + first * (WIDTH + GAP)
        x2 = 20 + last * (WIDTH + GAP) - GAP
        parts.append(
            f'<path d="M{x1} {TOP - 8}v-8H{x2}v8" fill="none" stroke="#999"/>'
            f'<text x="{(x1 + x2) / 2}" y="{TOP - 24}" text-anchor="middle" font-size="13" '
            f'fill="#555">{text}</text>'
        )
    parts.append("</svg>")
    Path(__file__).with_name("flow.svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
