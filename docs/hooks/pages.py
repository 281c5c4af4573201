"""What mkdocs calls while it builds: pages made from the code instead of written by hand."""

from commands import command_page, commands
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook import notebook_page
from protocols import BLOCKS
from recipes import recipes_page
from settings import settings_page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of commands in the navigation, in the order of the pipeline."""
    (entry,) = (entry for entry in config.nav if "Commands" in entry)
    entry["Commands"] = [{name: f"commands/{name}.md"} for name in commands()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each command, and one each of recipes, settings and the notebook."""
    made = {f"commands/{name}.md": command_page(name) for name in commands()}
    made |= {"recipes.md": recipes_page(), "settings.md": settings_page()}
    made["quickstart.md"] = notebook_page()
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put tables made from the code where a page asks for them."""
    del page, config, files
    for name, block in BLOCKS.items():
        marker = f"<!-- made from the code: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, block())
    return markdown
