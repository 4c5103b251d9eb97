# PYTHON_ARGCOMPLETE_OK
"""Make a report of a run: one self-contained HTML page.

    python report.py runs/cifar10                  # writes runs/cifar10/report.html

It shows samples, how they emerge from noise, losses, the noise schedule, the results of evaluate.py
and how the model was trained. If a part is missing, the page names the command that makes it. It
needs only a browser, no network connection.
"""

import sys
from pathlib import Path

from runtime.arguments import Parser
from runtime.output import protect_output
from runtime.signals import Stop


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="a run directory, as train.py writes it")
    add("--out", type=Path, metavar="FILE", help="output file (RUN_DIR/report.html)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before importing torch, so that typos fail at once
    out = args.out or args.run_dir / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--out {out} must end in .html")

    from run_page.page import TEMPLATE, build_page
    from runtime.atomic_file import complete_file

    if not TEMPLATE.is_file():
        parser.error(f"{TEMPLATE}, the template of the page, is missing: copy it from the project")
    try:
        page = build_page(args.run_dir)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(
            f"cannot read {args.run_dir} ({error.strerror}): give a run directory that you can read"
        )
    try:
        with complete_file(out) as temporary:
            temporary.write_bytes(page)
    except OSError as error:
        parser.error(f"cannot write {out} ({error.strerror}): choose another --out")
    print(f"{out}: {len(page) / 2**20:.1f} MiB, open it in a browser")
    return 0


if __name__ == "__main__":
    protect_output()
    # a signal ends the program at once, without half-written files; the warning of a time limit is
    # ignored
    Stop().arm(brief=True)
    sys.exit(main())
