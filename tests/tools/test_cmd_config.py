# SPDX-License-Identifier: Apache-2.0
"""`weir config`: what check, show and schema print, that documentation and example go with them, and
that the check of CHANGELOG.md finds what is missing."""
import json
import os
import re
import shutil
import subprocess
import unittest

import yaml

from cli_case import WEIR, CliCase

SOURCE = os.environ["WEIR_TEST_SOURCE"]
SCHEMA = os.path.join(SOURCE, "docs/run-config.schema.json")
CHECK_CHANGELOG = os.path.join(SOURCE, "scripts/check-changelog")
EXAMPLE = os.path.join(SOURCE, "examples/broadcast.yaml")

WRONG = """\
model: {name: m}
weight_broadcast:
  type: filesystem
  quantize_in_weight_transfer: true
  prt: 1
trainer: {model: {impl: custom}}
inference: {}
"""


def fields_of(block, path=""):
    for key, field in block["properties"].items():
        yield path + key, field
        if "properties" in field:
            yield from fields_of(field, path + key + ".")


def schema():
    with open(SCHEMA, encoding="utf-8") as stream:
        return json.load(stream)


class Config(CliCase):
    def write(self, text, name="run.yaml"):
        with open(self.path(name), "w", encoding="utf-8") as stream:
            stream.write(text)
        return name

    def check(self, *arguments, code=1):
        result = subprocess.run([WEIR, "config", "check", *arguments], capture_output=True,
                                text=True, timeout=60, cwd=self.folder, check=False)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    # ---- check -------------------------------------------------------------------------------

    def test_every_problem_is_a_line_with_its_place_and_the_way_out(self):
        result = self.check(self.write(WRONG))
        self.assertEqual(result.stdout.splitlines(), [
            "run.yaml:5:3: weight_broadcast.prt: is no field (the nearest that is known is "
            "weight_broadcast.port)",
            "run.yaml:3:9: weight_broadcast.type: weight_broadcast.quantize_in_weight_transfer "
            "requires weight_broadcast.type = 'nccl'. (set weight_broadcast.type: nccl, or take "
            "the flag out)"])
        self.assertEqual(result.stderr, "weir: run.yaml: 2 problems\n")

    def test_the_trainer_s_machine_may_be_said_where_a_run_is_started(self):
        text = ("model: {name: m}\nweight_broadcast: {type: nccl}\ninference: {tp: 8}\n"
                "deployment: {type: multi_node}\n")
        result = self.check(self.write(text))
        self.assertIn("orchestrator.weight_broadcast.host: is localhost", result.stdout)
        self.assertIn("--trainer-host", result.stdout)
        result = self.check("run.yaml", "--trainer-host", "node0", code=0)
        self.assertIn("no problem", result.stdout)

    def test_problems_as_json(self):
        result = self.check(self.write(WRONG), "--json")
        report = json.loads(result.stdout)
        self.assertEqual(report["file"], "run.yaml")
        self.assertEqual([(row["line"], row["column"], row["path"]) for row in report["problems"]],
                         [(5, 3, "weight_broadcast.prt"), (3, 9, "weight_broadcast.type")])
        self.assertTrue(all(row["text"] and row["hint"] for row in report["problems"]))

    def test_yaml_that_is_broken_has_a_line_and_no_field(self):
        result = self.check(self.write("model: {name: m}\nrun: [a\n"))
        self.assertRegex(result.stdout, r"^run\.yaml:3:1: while parsing .* \(this is no YAML: ")

    def test_a_file_that_is_not_there_and_a_wrong_command_line(self):
        self.assertIn("none.yaml: No such file", self.error("config", "check", "none.yaml"))
        self.assertIn("takes one file, got 0", self.error("config", "check", code=2))
        self.assertIn("'config' takes one of: check, show, schema", self.error("config", code=2))

    def test_the_example_passes(self):
        out = self.check(EXAMPLE, code=0).stdout
        self.assertEqual(out.splitlines()[0], f"{EXAMPLE}: no problem")
        self.assertEqual(self.weir_json("config", "check", EXAMPLE)["problems"], [])

    def test_the_model_on_this_machine_says_the_conversion(self):
        os.mkdir(self.path("fp8"))
        with open(self.path("fp8/config.json"), "w", encoding="utf-8") as stream:
            json.dump({"model_type": "qwen3", "quantization_config":
                       {"quant_method": "fp8", "weight_block_size": [128, 128]}}, stream)
        name = self.write("model: {name: m}\ntrainer: {model: {impl: custom}}\n"
                          "weight_broadcast: {type: nccl, quantize_in_weight_transfer: true}\n"
                          "inference: {model: {path: fp8}}\n")
        self.assertIn("in kernel format by fp8_128x128", self.check(name, code=0).stdout)
        shown = self.weir_json("config", "show", name)
        self.assertEqual((shown["family"], shown["conversion"]), ("qwen3", "fp8_128x128"))

    # ---- show --------------------------------------------------------------------------------

    def test_kernel_format_that_saves_nothing_is_noted(self):
        os.mkdir(self.path("bf16"))
        with open(self.path("bf16/config.json"), "w", encoding="utf-8") as stream:
            json.dump({"model_type": "qwen3"}, stream)
        text = ("model: {name: m}\ntrainer: {model: {impl: custom}}\nweight_broadcast: {type: nccl, "
                "quantize_in_weight_transfer: true}\ninference: {model: {path: bf16}%s}\n")
        result = self.check(self.write(text % ""), code=0)
        self.assertIn("note: quantize_in_weight_transfer is on, and config.json", result.stderr)
        result = self.check(self.write(text % ", conversion: fp8_128x128"), code=0)
        self.assertEqual(result.stderr, "")

    def test_what_is_shown_is_a_file_that_says_the_same(self):
        text = self.weir("config", "show", EXAMPLE).stdout
        settings = self.weir_json("config", "show", EXAMPLE)["settings"]
        self.assertEqual(yaml.safe_load(text), settings)
        name = self.write(text)
        self.check(name, code=0)
        self.assertEqual(self.weir_json("config", "show", name)["settings"], settings)

    def test_what_is_shown_says_where_it_comes_from(self):
        text = self.weir("config", "show", EXAMPLE).stdout
        with open(EXAMPLE, encoding="utf-8") as stream:
            line = next(n for n, line in enumerate(stream, 1) if line.startswith("  port:"))
        self.assertIn(f"    port: 29501 # from weight_broadcast.port, line {line}\n", text)
        self.assertIn("    inference_world_size: 4 # worked out\n", text)
        self.assertIn("max_async_level: 1 # default\n", text)

    def test_nothing_is_shown_of_what_has_problems(self):
        self.assertIn("run.yaml:5:3: weight_broadcast.prt: is no field",
                      self.error("config", "show", self.write(WRONG)))

    # ---- schema ------------------------------------------------------------------------------

    def test_the_published_schema_is_the_programs(self):
        printed = self.weir("config", "schema").stdout
        with open(SCHEMA, encoding="utf-8") as stream:
            self.assertEqual(printed, stream.read(),
                             "run: weir config schema > docs/run-config.schema.json")

    def test_the_schema_knows_every_field_of_the_example(self):
        def walk(value, block):
            self.assertIs(block["additionalProperties"], False)
            for key, own in value.items():
                field = block["properties"][key]
                if isinstance(own, dict):
                    walk(own, field)
                elif "enum" in field:
                    self.assertIn(own, field["enum"])
                else:
                    self.assertIsInstance(own, {"string": str, "integer": int, "boolean": bool,
                                                "array": list}[field["type"]])
        with open(EXAMPLE, encoding="utf-8") as stream:
            walk(yaml.safe_load(stream), schema())

    def test_the_table_of_the_documentation_has_every_field(self):
        with open(os.path.join(SOURCE, "docs/run-config.md"), encoding="utf-8") as stream:
            rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]*(?:\\\|[^|]*)*) \| ([^|]*) \| (.*) \|$",
                              stream.read(), re.M)
        expected = []
        for path, field in fields_of(schema()):
            takes = "block" if "properties" in field else "|".join(field.get("enum", ["text"]))
            if field.get("type") == "integer":
                takes = f"integer {field['minimum']}..{field['maximum']}"
            elif field.get("type") in ("boolean", "array"):
                takes = field["type"].replace("array", "list")
            else_of = field.get("x-weir-from", "").split("|") if "x-weir-from" in field else []
            if "default" in field:
                default = field["default"]
                else_of += default if isinstance(default, list) else \
                    [json.dumps(default).strip('"')]
            expected.append((path, takes, ", ".join(f"`{text}`" for text in else_of),
                             field["description"]))
        self.assertEqual([(path, takes.replace("\\|", "|"), default.strip(), text)
                          for path, takes, default, text in rows], expected)

    # ---- CHANGELOG.md ------------------------------------------------------------------------

    def changelog(self, change=None, fields=None):
        """check-changelog over copies: `change` of the text, `fields` of the schema."""
        with open(os.path.join(SOURCE, "CHANGELOG.md"), encoding="utf-8") as stream:
            text = stream.read()
        self.write(change(text) if change else text, "CHANGELOG.md")
        shutil.copy(SCHEMA, self.path("schema.json"))
        if fields:
            own = schema()
            fields(own["properties"])
            self.write(json.dumps(own), "schema.json")
        result = subprocess.run([CHECK_CHANGELOG, "CHANGELOG.md", "schema.json"], text=True,
                                capture_output=True, timeout=60, cwd=self.folder, check=False)
        self.assertEqual(result.returncode, 1 if result.stderr else 0)
        return result.stderr

    def test_the_changelog_has_every_field_as_it_is(self):
        self.assertEqual(self.changelog(), "")

    def test_a_field_without_an_entry_is_told_what_to_write(self):
        def add(fields):
            fields["colour"] = {"type": "string", "default": "red"}
        self.assertIn("colour is not there; write: - Run configuration, added: `colour: text = red`",
                      self.changelog(fields=add))
        entry = "\n- Run configuration, added: `colour: text = red`.\n"
        self.assertEqual(self.changelog(lambda text: entry + text, add), "")

    def test_a_default_or_a_range_that_has_changed_wants_an_entry(self):
        def change(fields):
            fields["weight_broadcast"]["properties"]["port"]["default"] = 29502
        self.assertIn("changed: `weight_broadcast.port: integer 1..65535 = 29502`",
                      self.changelog(fields=change))
        entry = "\n- Run configuration, changed: `weight_broadcast.port: integer 1..65535 = 29502`.\n"
        self.assertEqual(self.changelog(lambda text: entry + text, change), "")

    def test_a_field_that_is_gone_wants_an_entry(self):
        def remove(fields):
            del fields["max_steps"]
        self.assertIn("write above it: - Run configuration, removed: `max_steps`",
                      self.changelog(fields=remove))
        entry = "\n- Run configuration, removed: `max_steps`.\n"
        self.assertEqual(self.changelog(lambda text: entry + text, remove), "")


if __name__ == "__main__":
    unittest.main()
