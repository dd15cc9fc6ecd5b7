# SPDX-License-Identifier: Apache-2.0
"""The page of a directory in headless Chromium, over real refits: what a person sees.

WEIR_TEST_SCREENSHOT=FILE.png writes what it looked like; no test compares pictures."""
import os
import shutil
import sys
import time
import unittest

import grpc
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "refit"))
import flow_case  # noqa: E402
import peer_stubs  # noqa: E402

WAIT_S = 20
MODEL = "glm-moe-dsa"
HOSTILE = "<img src=x onerror=document.title='owned'>\"&amp;"


def browse():
    options = Options()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1280,1180", "--disable-background-networking", "--no-first-run",
                     "--disable-extensions", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)


class PageCase(flow_case.FlowCase):
    """One browser for all cases: it takes longest."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.browser = browse()
        cls.stubs = peer_stubs.generate()

    @classmethod
    def tearDownClass(cls):
        cls.browser.quit()
        shutil.rmtree(cls.stubs, ignore_errors=True)
        super().tearDownClass()

    def serve(self, *more):
        self.directory = self.start("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
                                    "--json", *more)
        said = self.directory.line()
        self.address, self.page = said["address"], "http://%s/" % said["http"]
        self.flow = ["--directory", self.address, "--model", MODEL, "--conversion", "fp8_128x128",
                     "--json"]

    def setUp(self):
        # The page of the case before asks for its directory, which is gone, until it is left.
        self.browser.get("about:blank")
        self.browser.get_log("browser")
        self.serve()

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        """Of the first, read at once, for the page changes underneath."""
        return self.browser.execute_script(
            "const e = document.querySelector(arguments[0]); return e ? e.innerText : '';", selector)

    def texts(self, selector):
        return self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText);", selector)

    def until(self, what, holds):
        end = time.monotonic() + WAIT_S
        while not holds():
            if time.monotonic() > end:
                self.fail("%s; the page says:\n%s" % (what, self.text("body")))
            time.sleep(0.03)

    def assert_quiet_console(self):
        self.assertEqual([line for line in self.browser.get_log("browser")
                          if line["level"] in ("SEVERE", "WARNING")], [])

    def report_progress(self, worker, done, total, source):
        import directory_pb2  # made by peer_stubs
        import directory_pb2_grpc
        with grpc.insecure_channel(self.address) as channel:
            directory_pb2_grpc.DirectoryServiceStub(channel).ReportProgress(
                directory_pb2.ReportProgressRequest(
                    worker_id=worker, model_name=MODEL, version_number=3, stop="transfer",
                    done_bytes=done, total_bytes=total, slowest_from=source), timeout=5)


class Page(PageCase):
    def test_a_fleet_is_seen_while_its_refits_run(self):
        self.browser.get(self.page)
        self.until("the page is there", lambda: "Nothing has been published" in self.text("main"))
        trainers = self.trainers()
        replicas = [self.replica("engine-%d" % i, "--follow") for i in range(2)]
        for version in (1, 2):
            self.publish(trainers, version)
            for replica in replicas:
                self.expect_installed(replica, version)
            self.until("version %d is held by both" % version,
                       lambda v=version: "version %d held by 2 of 2" % v in self.text(".title"))
        self.assertEqual(len(self.texts("[data-card=trainer] tbody tr")), 2)
        rows = self.texts("[data-card=replica] tbody tr")
        self.assertEqual([row.split()[:3] for row in rows],
                         [["engine-0", "2", "ready"], ["engine-1", "2", "ready"]])

        lanes = "[data-version='2'] .lane"
        self.until("four lanes", lambda: len(self.texts(lanes)) == 4)
        stops = self.browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((l) => "
            "[...l.querySelectorAll('i')].map((i) => [i.dataset.stop, i.getBoundingClientRect()"
            ".width]));", lanes)
        for lane in stops:
            self.assertTrue(all(width >= 2 for _, width in lane), stops)
        self.assertTrue({"stage", "publish"} <= {name for name, _ in stops[0]}, stops)
        self.assertTrue({"transfer", "install"} <= {name for name, _ in stops[2]}, stops)

        odd = self.start("receive", "--name", "engine-odd", "--config", self.config, "--directory",
                         self.address, "--model", MODEL, "--conversion",
                         "cutlass_fp8_e4m3_per_channel", "--json", "--version", "2")
        self.assertNotEqual(odd.wait()[0], 0)
        self.until("the refusal", lambda: "engine-odd" in self.text("[data-card=refusals]"))
        self.assertIn("this replica needs cutlass_fp8", self.text("[data-card=refusals] .why"))

        self.report_progress("engine-0-00000000", 400 << 20, 2000 << 20, "trainer-0-00000000")
        self.report_progress("engine-1-00000000", 300 << 20, 2000 << 20, "trainer-1-00000000")
        self.publish(trainers, 3)
        for replica in replicas:
            self.expect_installed(replica, 3)
        self.until("a refit in flight", lambda: "734 MB of 4.19 GB" in
                   self.text("[data-card=flight]"))
        for i in range(1, 4):
            time.sleep(0.25)  # of the workers' clock: a rate is bytes over time
            self.report_progress("engine-0-00000000", (400 + 90 * i) << 20, 2000 << 20, "trainer-0-00000000")
            self.report_progress("engine-1-00000000", (300 + 60 * i) << 20, 2000 << 20, "trainer-1-00000000")
        self.until("a rate and the slowest link", lambda: "MB/s" in self.text(".figures") and
                   "engine-1" in self.text(".figures"))
        self.until("version 3 everywhere", lambda: "version 3 held by 2 of 2" in self.text(".title"))
        if os.environ.get("WEIR_TEST_SCREENSHOT"):
            self.browser.set_window_size(1280, 1560)
            self.browser.save_screenshot(os.environ["WEIR_TEST_SCREENSHOT"])
        self.assert_quiet_console()

    def test_names_are_text_however_hostile(self):
        import refit_pb2
        import refit_pb2_grpc
        with grpc.insecure_channel(self.address) as channel:
            refit_pb2_grpc.RefitServiceStub(channel).RegisterWorker(
                refit_pb2.RegisterWorkerRequest(worker=refit_pb2.WorkerRegistration(
                    worker_id=HOSTILE, role=1, model_name=HOSTILE), ttl_seconds=60), timeout=5)
        self.browser.get(self.page)
        self.until("the name as it is", lambda: HOSTILE in self.text("main"))
        self.assertEqual(self.all("main img"), [])
        self.assertNotEqual(self.browser.title, "owned")
        self.assert_quiet_console()

    def test_it_fits_a_telephone(self):
        self.browser.set_window_size(390, 844)
        self.addCleanup(self.browser.set_window_size, 1280, 1180)
        trainer = self.start("publish", self.checkpoint(1), "--version", "1", *self.flow, "--follow")
        self.assertEqual(trainer.line()["version"], 1)
        self.browser.get(self.page)
        self.until("the fleet", lambda: "rank" in self.text("main"))
        wide, seen = self.browser.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth];")
        self.assertLessEqual(wide, seen)

    def test_a_token_is_asked_for_and_kept_in_the_tab(self):
        path = os.path.join("/tmp", "weir-page-token-%d" % os.getpid())
        self.addCleanup(os.unlink, path)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as file:
            file.write("a-token-of-the-fleet\n")
        self.serve("--token-file", path)
        self.browser.get(self.page)
        for token, expected in (("wrong", "is not it"), ("a-token-of-the-fleet", "Nothing has been")):
            self.until("it asks", lambda: self.all("form.ask input"))
            self.browser.find_element(By.CSS_SELECTOR, ".ask input").send_keys(token)
            self.browser.find_element(By.CSS_SELECTOR, ".ask button").click()
            self.until(expected, lambda e=expected: e in self.text("main"))
        self.browser.refresh()
        self.until("it is not asked for again", lambda: "Nothing has been" in self.text("main"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
