"""Extensions of the site's build, so that the same Markdown reads well on GitHub and on the site.

- Results of experiments and SECURITY.md lie outside docs/. Copy them into the site, and point the relative
  links of the repository at the copies.
- Link a full name in code, such as `vdm_jax.gaussian.kl`, to its entry in the API reference; warn if it has
  none.
- Convert LaTeX to MathML, which browsers render without scripts, fonts or a network; warn if it does not
  parse.
"""

import html
import logging
import posixpath
import re
from pathlib import Path

from math_core import LatexError, LatexToMathML
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = ("experiments/results", "SECURITY.md")
LINK = re.compile(r"\]\((?P<to>(?:\.\./)+[^)#\s]+)")
NAME = re.compile(r"(?<![\[`])`(?P<name>vdm_jax(?:\.\w+)+)`(?![\]`])")
# pymdownx.arithmatex marks formulas like this
INLINE = re.compile(r'<span class="arithmatex">\\\((?P<latex>.*?)\\\)</span>', re.S)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(?P<latex>.*?)\\\]</div>', re.S)
IN_CONTENTS = re.compile(r"\\\((?P<latex>.*?)\\\)")
TAG = re.compile(r"\\tag\{(?P<number>\w+)\}")

log = logging.getLogger("mkdocs.hooks.math")
converter = LatexToMathML(fancy_error=False)


def on_files(files, config):
    for place in OUTSIDE:
        path = ROOT / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                uri = file.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, **_):
    folder = posixpath.dirname(page.file.src_uri)

    def link_to_copy(match):
        target = posixpath.normpath(posixpath.join("docs", folder, match["to"]))
        if not target.startswith(OUTSIDE):
            return match[0]
        return f"]({posixpath.relpath(target, folder or '.')}"

    def link_names(text):
        return NAME.sub(r"[`\g<name>`][\g<name>]", text)

    markdown = LINK.sub(link_to_copy, markdown)
    parts, end = [], 0
    for fence in re.finditer(r"^```.*?^```$", markdown, re.S | re.M):
        parts += [link_names(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, link_names(markdown[end:])])


def on_page_content(content, page, **_):
    def mathml(latex, display=False):
        try:
            return converter.convert_with_local_state(html.unescape(latex), displaystyle=display)
        except LatexError as error:
            log.warning("%s: %s in %r", page.file.src_uri, error, latex)
            return f"<code>{latex}</code>"

    def inline(match):
        return mathml(match["latex"])

    def equation(match):
        tag = TAG.search(match["latex"])
        number = f'<span class="equation-number">({tag["number"]})</span>' if tag else ""
        formulas = "".join(
            f'<div class="equation-formula">{mathml(part, display=True)}</div>'
            for part in TAG.sub("", match["latex"]).split(r"\qquad")
        )
        return (
            f'<div class="equation"><div class="equation-formulas">{formulas}</div>{number}</div>'
        )

    def convert_titles(items):
        for item in items:
            item.title = IN_CONTENTS.sub(inline, item.title)
            convert_titles(item.children)

    convert_titles(page.toc)
    return DISPLAY.sub(equation, INLINE.sub(inline, content))
