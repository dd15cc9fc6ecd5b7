# SPDX-License-Identifier: Apache-2.0
"""`weir plan`: its figures add up, the predicted time obeys its links, one worker's and one rank's
list agree with the totals, and wrong words are refused."""
import re
import unittest

from cli_case import CliCase

PRESET = ("--family", "qwen3_moe", "--preset", "tiny")
RAGGED = ("--family", "qwen3_moe", "--preset", "ragged")
MESHES = (("", ""), ("fsdp=3,ep=2", "tp=2,replicas=3"), ("tp=2,pp=2,hsdp=2", "dp=2,ep=2,pp=2"))
TIMES = ("seconds", "all_shares_seconds", "slowest_share_seconds", "peak_process_bytes")


class Plan(CliCase):
    def plan(self, trainer, replica, *arguments):
        return self.weir_json("plan", *PRESET, "--trainer", trainer, "--replica", replica,
                              *arguments)

    # ---- totals ---------------------------------------------------------------------------------

    def test_what_ranks_send_is_what_workers_get(self):
        for trainer, replica in MESHES:
            plan = self.plan(trainer, replica)
            self.assertEqual(sum(plan["rank_bytes_sent"]), plan["bytes"])
            self.assertEqual(sum(plan["worker_bytes"]), plan["bytes"])
            self.assertEqual(sum(plan["worker_copies"]), plan["copies"])
            self.assertEqual(len(plan["rank_bytes_sent"]), plan["ranks"])
            self.assertEqual(len(plan["worker_bytes"]), plan["workers"])
            self.assertGreater(plan["copies"], 0)

    def test_nothing_is_moved_that_no_worker_needs(self):
        for trainer, replica in MESHES:
            plan = self.plan(trainer, replica)
            self.assertEqual(plan["bytes"], plan["needed_bytes"])
            for got, parameters in zip(plan["worker_bytes"], plan["worker_parameter_bytes"]):
                self.assertLessEqual(got, parameters)  # vocabulary is padded

    def test_slots_do_not_grow_with_replicas(self):
        one, three = (self.plan("fsdp=3,ep=2", f"tp=2,replicas={n}") for n in (1, 3))
        self.assertEqual(one["rank_slot_bytes"], three["rank_slot_bytes"])
        self.assertEqual(one["rank_memory_bytes"], three["rank_memory_bytes"])
        self.assertEqual([3 * n for n in one["rank_bytes_sent"]], three["rank_bytes_sent"])

    def test_a_window_stands_for_the_slots(self):
        slots, window = (self.plan("", "", *more) for more in ((), ("--window", "1M")))
        self.assertEqual((slots["window_bytes"], window["window_bytes"]), (0, 1 << 20))
        for key in ("bytes", "rank_slot_bytes", "worker_bytes", "rank_bytes_sent"):
            self.assertEqual(window[key], slots[key])
        self.assertEqual(window["rank_memory_bytes"], [1 << 20])
        self.assertGreater(window["copies"], slots["copies"])
        self.assertGreater(slots["largest_copy_bytes"], 1 << 19)
        self.assertLessEqual(window["largest_copy_bytes"], 1 << 19)
        part = self.plan("", "", "--window", "1M", "--rank", "0")
        self.assertEqual(len(part["shards"]), window["copies"])
        self.assertIn("that cannot be cut does not fit a buffer of 32 bytes", self.error(
            "plan", *PRESET, "--trainer", "", "--replica", "", "--window", "64", code=1))

    def test_a_signature_stands_for_the_layout_however_many_replicas_there_are(self):
        signature = self.plan("fsdp=3,ep=2", "tp=2")["plan"]["signature"]
        self.assertRegex(signature, "^[0-9a-f]{32}$")
        again, three, other = (self.plan(*meshes)["plan"]["signature"] for meshes in (
            ("ep=2,fsdp=3", "tp=2"), ("fsdp=3,ep=2", "tp=2,replicas=3"), ("fsdp=2,ep=3", "tp=2")))
        self.assertEqual((again, three), (signature, signature))
        self.assertNotEqual(other, signature)

    def test_two_plans_of_the_same_are_the_same(self):
        meshes = ("fsdp=3,ep=2", "tp=2,replicas=3", "--simulate", "link_gb_per_s=50")
        one, two = (self.plan(*meshes) for _ in range(2))
        for key in TIMES:
            del one["plan"][key], two["plan"][key]
        self.assertEqual(one, two)

    def test_balance_is_the_most_over_the_mean(self):
        skewed = self.plan("ep=2", "tp=2,ep=2", "--owners", "[0,1,1,1,1,1,1,1]")
        self.assertGreater(skewed["balance"]["rank_bytes_sent"], 1.2)
        for key, balance in skewed["balance"].items():
            numbers = skewed[key]
            self.assertAlmostEqual(balance, max(numbers) * len(numbers) / sum(numbers))

    def test_a_rank_alone_keeps_the_model_twice(self):
        plan = self.plan("", "")
        self.assertEqual(plan["rank_slot_bytes"], [plan["bytes"]])
        self.assertEqual(plan["rank_memory_bytes"], [2 * plan["bytes"]])

    def test_a_config_file_plans_as_its_preset(self):
        self.weir("synth", *PRESET, "-o", "model")
        meshes = ("--trainer", "fsdp=2", "--replica", "tp=2", "--naming", "stacked")
        ours = self.weir_json("plan", "--config", "model", *meshes)
        theirs = self.weir_json("plan", *PRESET, *meshes)
        for key in TIMES:
            del ours["plan"][key], theirs["plan"][key]
        self.assertEqual(ours, theirs)

    def test_blocks_over_several_ranks_are_borders(self):
        plan = self.plan("fsdp=3", "", "--conversion", "fp8_128x128")
        self.assertGreater(plan["border_pieces"], 0)
        self.assertEqual(sum(plan["rank_bytes_lent"]), plan["border_bytes"])
        self.assertEqual(sum(plan["rank_bytes_borrowed"]), plan["border_bytes"])
        for memory, slot, lent, borrowed in zip(
                plan["rank_memory_bytes"], plan["rank_slot_bytes"], plan["rank_bytes_lent"],
                plan["rank_bytes_borrowed"]):
            self.assertEqual(memory, 2 * slot + 2 * lent + borrowed)

    def test_hosts_are_sums_of_their_gpus(self):
        plan = self.plan("fsdp=3,ep=2", "tp=2,replicas=3", "--gpus-per-host", "4")
        for host, gpu in (("host_bytes_sent", "rank_bytes_sent"),
                          ("host_bytes_read", "worker_bytes")):
            numbers = plan[gpu]
            self.assertEqual(plan[host], [sum(numbers[:4]), sum(numbers[4:])])
        self.assertNotIn("host_bytes_sent", self.plan("", ""))

    def test_expert_maps_move_experts(self):
        replica = "tp=2,ep=2"
        even = self.plan("ep=2", replica)
        owners = "[" + ",".join("0" if x else "1" for x in range(8)) + "]"
        skewed = self.plan("ep=2", replica, "--owners", owners)
        self.assertGreater(skewed["rank_slot_bytes"][0], even["rank_slot_bytes"][0])
        twice = self.plan("ep=2", replica, "--experts", "[[0,1,2,3,4],[4,5,6,7]]")
        self.assertGreater(twice["worker_bytes"][0], even["worker_bytes"][0])
        self.assertEqual(twice["worker_bytes"][1], even["worker_bytes"][1])

    def test_the_text_says_what_the_json_says(self):
        meshes = ("--trainer", "fsdp=3,ep=2", "--replica", "tp=2,replicas=3")
        text = self.weir("plan", *PRESET, *meshes, "--simulate", "link_gb_per_s=50").stdout
        plan = self.plan("fsdp=3,ep=2", "tp=2,replicas=3", "--simulate", "link_gb_per_s=50")
        self.assertEqual(int(re.search(r"^copies +(\d+) ", text, re.M)[1]), plan["copies"])
        self.assertEqual(int(re.search(r"^conversions +(\d+)$", text, re.M)[1]),
                         plan["conversions"])
        self.assertEqual(int(re.search(r"^plan +(\d+) rules", text, re.M)[1]),
                         plan["plan"]["rules"])
        seconds = float(re.search(r"^refit +(\S+) s:", text, re.M)[1])
        self.assertAlmostEqual(seconds / plan["simulation"]["seconds"], 1, places=3)
        self.assertIn(f"bound           {plan['simulation']['bound']['link']} ", text)
        for label in ("one of 2 slots", "rank sends", "rank lends", "rank borrows", "worker gets",
                      "rank memory", "worker memory", "borders", "fraction", "if relayed"):
            self.assertRegex(text, f"(?m)^{label} +\\S")

    # ---- the simulation -------------------------------------------------------------------------

    def simulate(self, rates, *meshes, more=()):
        meshes = meshes or ("fsdp=3,ep=2", "tp=2,replicas=3")
        plan = self.plan(*meshes, "--simulate", rates, *more)
        simulation = plan["simulation"]
        self.assertGreaterEqual(simulation["seconds"], simulation["bound_seconds"])
        self.assertAlmostEqual(simulation["fraction"],
                               simulation["bound_seconds"] / simulation["seconds"])
        return plan, simulation

    def test_a_single_pair_takes_its_bytes_over_the_rate(self):
        plan, simulation = self.simulate("link_gb_per_s=2,latency_us=100", "", "")
        seconds = plan["bytes"] / 2e9
        self.assertAlmostEqual(simulation["bound_seconds"] / seconds, 1, places=9)
        self.assertAlmostEqual(simulation["seconds"] / (seconds + 1e-4), 1, places=9)

    def test_the_bound_is_the_link_with_the_most_bytes(self):
        plan, simulation = self.simulate("link_gb_per_s=50")
        most = max(plan["rank_bytes_sent"] + plan["worker_bytes"])
        self.assertEqual(simulation["bound"]["bytes"], most)
        self.assertAlmostEqual(simulation["bound_seconds"] / (most / 50e9), 1, places=9)
        self.assertEqual(simulation["slowest_reader"]["bytes"], max(plan["worker_bytes"]))

    def test_trainers_send_every_replica_its_copy(self):
        plan, simulation = self.simulate("link_gb_per_s=50", "fsdp=2", "replicas=8")
        self.assertRegex(simulation["bound"]["link"], "^trainer rank [01] sends$")
        self.assertAlmostEqual(simulation["bound_seconds_if_replicas_relayed"],
                               max(plan["worker_bytes"]) / 50e9)
        self.assertLess(simulation["bound_seconds_if_replicas_relayed"],
                        simulation["bound_seconds"])

    def test_faster_links_never_take_longer(self):
        times = [self.simulate(f"link_gb_per_s={rate},latency_us=3")[1]["seconds"]
                 for rate in (1, 10, 50, 400)]
        self.assertEqual(times, sorted(times, reverse=True))

    def test_latency_is_paid_by_every_window(self):
        plan, once = self.simulate("link_gb_per_s=50,latency_us=1000", "", "")
        _, each = self.simulate("link_gb_per_s=50,latency_us=1000,window=1", "", "")
        self.assertAlmostEqual(each["seconds"] - once["seconds"], (plan["copies"] - 1) * 1e-3)

    def test_converting_comes_before_reading_or_beside_it(self):
        rates = "link_gb_per_s=1,convert_gb_per_s=1"
        _, behind = self.simulate(rates, "", "")
        _, beside = self.simulate(rates + ",groups=4", "", "")
        convert, read = behind["convert_seconds"], behind["read_seconds"]
        self.assertAlmostEqual(behind["seconds"], convert + read)
        self.assertAlmostEqual(beside["seconds"],
                               convert / 4 + 0.75 * max(convert, read) + read / 4)

    def test_borders_come_first(self):
        _, simulation = self.simulate("link_gb_per_s=1", "fsdp=3", "", more=(
            "--conversion", "fp8_128x128"))
        self.assertGreater(simulation["border_seconds"], 0)
        self.assertAlmostEqual(simulation["seconds"],
                               simulation["border_seconds"] + simulation["read_seconds"])

    def test_a_narrow_host_is_the_bound(self):
        plan, simulation = self.simulate("link_gb_per_s=50,host_gb_per_s=1", "fsdp=4", "tp=4",
                                         more=("--gpus-per-host", "4"))
        self.assertRegex(simulation["bound"]["link"],
                         "^(trainer host 0 sends|engine host 0 reads)$")
        self.assertAlmostEqual(simulation["bound_seconds"], plan["bytes"] / 1e9)

    # ---- lists ----------------------------------------------------------------------------------

    def test_a_workers_list_is_its_part_of_the_totals(self):
        meshes = ("fsdp=3,ep=2", "tp=2,replicas=3")
        plan = self.plan(*meshes)
        for worker in (0, 3, 5):
            part = self.plan(*meshes, "--worker", str(worker))
            self.assertEqual(part["bytes"], plan["worker_bytes"][worker])
            self.assertEqual(len(part["copies"]), plan["worker_copies"][worker])
            self.assertEqual(sum(copy["bytes"] for copy in part["copies"]), part["bytes"])
            text = self.weir("plan", *PRESET, "--trainer", meshes[0], "--replica", meshes[1],
                             "--worker", str(worker)).stdout.splitlines()
            self.assertEqual(len(text), len(part["copies"]) + 1)
            self.assertIn(f"reads {len(part['copies'])} copies", text[-1])

    def test_a_ranks_list_is_its_part_of_the_totals(self):
        meshes = ("fsdp=3", "tp=1", "--conversion", "fp8_128x128")
        plan = self.plan(*meshes)
        for rank in range(3):
            part = self.plan(*meshes, "--rank", str(rank))
            self.assertEqual(sum(shard["bytes"] for shard in part["shards"]),
                             plan["rank_slot_bytes"][rank])
            for loans, key in (("lends", "rank_bytes_lent"), ("borrows", "rank_bytes_borrowed")):
                self.assertEqual(sum(loan["bytes"] for loan in part[loans]), plan[key][rank])
                self.assertNotIn(rank, [loan["rank"] for loan in part[loans]])
        self.assertIn("rank 1 publishes", self.weir(
            "plan", *PRESET, "--trainer", "fsdp=3", "--replica", "", "--rank", "1").stdout)

    # ---- what cannot be -------------------------------------------------------------------------

    def test_what_cannot_be_is_refused_with_the_reason(self):
        meshes = ("--trainer", "fsdp=2", "--replica", "tp=2")
        for arguments, code, reason in (
                ((*PRESET, "--trainer", "fsdp=x", "--replica", ""), 2, "'fsdp=x'"),
                ((*PRESET, "--trainer", "", "--replica", "tp=2,ep=3"), 2, "'ep=3'"),
                ((*PRESET, "--trainer", ""), 2, "--replica MESH is missing"),
                (("--config", "x", *PRESET, *meshes), 2, "not both"),
                ((*PRESET, *meshes, "--naming", "x"), 2, "--naming takes"),
                ((*PRESET, *meshes, "--worker", "2"), 2, "from 0 to 1"),
                ((*PRESET, *meshes, "--rank", "2"), 2, "from 0 to 1"),
                ((*PRESET, *meshes, "--rank", "0", "--worker", "0"), 2, "one of --worker"),
                ((*PRESET, *meshes, "--gpus-per-host", "0"), 2, "--gpus-per-host takes"),
                ((*PRESET, *meshes, "--window", "0"), 2, "--window takes bytes"),
                ((*RAGGED, *meshes, "--conversion", "fp8_128x128"), 1,
                 "no multiple of fp8_128x128's block of 128"),
                ((*PRESET, "--trainer", "", "--replica", "tp=5"), 1, "do not divide over 5"),
                (("--config", "nowhere", *meshes), 1, "nowhere")):
            self.assertIn(reason, self.weir("plan", *arguments, code=code).stderr)

    def test_rates_that_cannot_be_are_refused_by_name(self):
        for rates, reason in (
                ("", "link_gb_per_s=NUMBER is missing"),
                ("latency_us=5", "link_gb_per_s=NUMBER is missing"),
                ("link_gb_per_s=50,speed=3", "unknown key in 'speed=3'"),
                ("link_gb_per_s", "'link_gb_per_s' is not link_gb_per_s=NUMBER"),
                ("link_gb_per_s=0", "'link_gb_per_s=0'"),
                ("link_gb_per_s=-1", "'link_gb_per_s=-1'"),
                ("link_gb_per_s=nan", "'link_gb_per_s=nan'"),
                ("link_gb_per_s=1e999", "'link_gb_per_s=1e999'"),
                ("link_gb_per_s=5,link_gb_per_s=5", "link_gb_per_s is there twice"),
                ("link_gb_per_s=50,latency_us=x", "'latency_us=x'"),
                ("link_gb_per_s=50,window=1.5", "'window=1.5' is not window=WHOLE NUMBER"),
                ("link_gb_per_s=50,groups=0", "'groups=0'"),
                ("link_gb_per_s=50,,latency_us=5", "unknown key in ''"),
                ("link_gb_per_s=50,host_gb_per_s=50", "needs --gpus-per-host")):
            self.assertIn(reason, self.error("plan", *PRESET, "--trainer", "", "--replica", "",
                                             "--simulate", rates, code=2))


if __name__ == "__main__":
    unittest.main()
