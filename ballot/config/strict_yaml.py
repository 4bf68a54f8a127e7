"""YAML in which every key is text and stands once; PyYAML lets the last of two keys win."""

from __future__ import annotations

import yaml

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class BadKey(yaml.MarkedYAMLError):
    """A key that is no text, or stands twice; `problem` says so."""


class StrictLoader(yaml.SafeLoader):
    """Load plain data; keys are looked at as they are written, before merges (`<<`)."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping, and refuse keys that would get lost or are something else."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != TEXT:
                what = f"the key {_shown(key)} is no text; put it in quotes"
                raise BadKey(problem=what, problem_mark=key.start_mark)
            if key.value in seen:
                what = f"duplicate key {key.value!r}; keep one"
                raise BadKey(problem=what, problem_mark=key.start_mark)
            seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names: own keys win, then the first mapping that has the key.

        PyYAML 6.0.3 and 6.0.4 differ where a merge is merged again, or several are.
        """
        merges = [(key, value) for key, value in node.value if key.tag == MERGE]
        pairs = {key.value: (key, value) for key, value in node.value if key.tag != MERGE}
        node.value = list(pairs.values())  # now, for a mapping that merges itself
        for key, merge in merges:
            for source in merge.value if isinstance(merge, yaml.SequenceNode) else [merge]:
                if not isinstance(source, yaml.MappingNode):
                    what = f"<< merges mappings, not a {source.id}"
                    raise BadKey(problem=what, problem_mark=key.start_mark)
                self.flatten_mapping(source)
                pairs = {**{pair[0].value: pair for pair in source.value}, **pairs}
        node.value = list(pairs.values())


def _shown(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else f"of kind {key.id}"


def load(text: str) -> object:
    """Load the one document of a text; raises `yaml.YAMLError`."""
    loader = StrictLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
