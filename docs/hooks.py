"""What the site does beyond Markdown, so that the same pages read well on GitHub.

- Results of experiments and SECURITY.md lie outside docs/. They become files of the site, and relative links to
  them, which are right in the repository, are turned into links to these.
- A full name in code, such as `vdm_jax.gaussian.kl`, becomes a link to its place in the API reference; one that
  has none there is a warning.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = ("experiments/results", "SECURITY.md")
LINK = re.compile(r"\]\((?P<to>(?:\.\./)+[^)#\s]+)")
NAME = re.compile(r"(?<![\[`])`(?P<name>vdm_jax(?:\.\w+)+)`(?![\]`])")


def on_files(files, config):
    for place in OUTSIDE:
        path = ROOT / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                uri = file.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, **_):
    here = posixpath.dirname(page.file.src_uri)

    def inside(found):
        """The link from a page's place in the repository as one from its place in the site."""
        target = posixpath.normpath(posixpath.join("docs", here, found["to"]))
        if not target.startswith(OUTSIDE):
            return found[0]
        return f"]({posixpath.relpath(target, here or '.')}"

    def linked(text):
        return NAME.sub(r"[`\g<name>`][\g<name>]", text)

    markdown = LINK.sub(inside, markdown)
    parts, end = [], 0
    for fence in re.finditer(r"^```.*?^```$", markdown, re.S | re.M):
        parts += [linked(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, linked(markdown[end:])])
