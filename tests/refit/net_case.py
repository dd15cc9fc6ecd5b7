# SPDX-License-Identifier: Apache-2.0
"""Hosts of one's own: network namespaces whose only way to each other is a wire made here, which
delays, reorders, loses, repeats and throttles packets, or carries none, in either direction.

Every host has a TUN device, this process holds its other end and hands packets on, so that nothing
is asked of the kernel but namespaces and TUN."""
import collections
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
import unittest

from flow_case import MODEL, WEIR, Process

NETWORK = "10.77.0."
MTU = 9000
IDLE_S = 0.05  # between two looks at who is there
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
HOLDER = ("mount -t sysfs none /sys && ip link set lo up && echo ready && read -r tun && "
          "ip address add $0/24 dev weir0 && ip link set weir0 mtu $1 up && echo up && read -r end")


class Host:
    """A network namespace with a device, and /sys as it looks from there (UCX reads it)."""

    def __init__(self, name, number):
        self.name, self.ip = name, NETWORK + str(number)
        try:
            self.holder = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", HOLDER, self.ip, str(MTU)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise unittest.SkipTest(f"SKIPPED: no network namespaces: {error}") from error
        if self.holder.stdout.readline() != b"ready\n":
            why = self.holder.stderr.read().decode().strip()
            self.close()
            raise unittest.SkipTest(f"SKIPPED: no network namespaces: {why}")
        self.tun = self.open_tun()
        self.holder.stdin.write(b"\n")
        self.holder.stdin.flush()
        if self.holder.stdout.readline() != b"up\n":
            raise AssertionError(f"{name}: {self.holder.stderr.read().decode()}")

    def open_tun(self):
        """A thread goes there, since a device is where it was opened."""
        opened = []

        def there():
            libc = ctypes.CDLL(None, use_errno=True)
            namespace = os.open(f"/proc/{self.holder.pid}/ns/net", os.O_RDONLY)
            try:
                if libc.setns(namespace, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"weir0", IFF_TUN_NO_PI))
                opened.append(tun)
            except OSError as error:
                opened.append(error)
            finally:
                os.close(namespace)
        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
        if isinstance(opened[0], OSError):
            self.close()
            raise unittest.SkipTest(f"SKIPPED: no TUN device: {opened[0]}")
        return opened[0]

    def command(self):
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount"]

    def close(self):
        for stream in (self.holder.stdin, self.holder.stdout, self.holder.stderr):
            stream.close()
        self.holder.wait(10)


class Way:
    """From one host to another."""

    def __init__(self):
        self.cut = False
        self.delay_s = self.jitter_s = self.loss = self.twice = 0.0
        self.n_bytes, self.cut_at = 0, None
        self.both = ()  # the ways that are cut then
        self.was_cut = threading.Event()


class Wire:
    """Hands packets from host to host, in a thread."""

    def __init__(self, hosts, seed):
        self.hosts = {host.ip: host for host in hosts}
        self.ways = collections.defaultdict(Way)
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.under_way = []
        self.n_sent = self.n_lost = 0
        self.closing, self.wake = os.pipe()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def way(self, one, other):
        return self.ways[one.ip, other.ip]

    def both_ways(self, one, other):
        return self.way(one, other), self.way(other, one)

    def cut(self, one, other):
        with self.lock:
            for way in self.both_ways(one, other):
                way.cut = True

    def heal(self, one, other):
        with self.lock:
            for way in self.both_ways(one, other):
                way.cut = False

    def cut_after(self, one, other, n_bytes):
        """Cuts both ways when so much more has gone from one to the other; gives the event."""
        with self.lock:
            way = self.way(one, other)
            way.both = self.both_ways(one, other)
            way.cut_at = way.n_bytes + n_bytes
            way.was_cut.clear()
            return way.was_cut

    def everywhere(self, **what):
        with self.lock:
            for one in self.hosts.values():
                for other in self.hosts.values():
                    for name, value in what.items():
                        setattr(self.way(one, other), name, value)

    def take(self, packet):
        if len(packet) < 20 or packet[0] >> 4 != 4:
            return
        ends = (".".join(map(str, packet[12:16])), ".".join(map(str, packet[16:20])))
        if ends[1] not in self.hosts:
            return
        way = self.ways[ends]
        way.n_bytes += len(packet)
        if way.cut_at is not None and way.n_bytes > way.cut_at:
            way.cut_at = None
            for one in way.both:
                one.cut = True
            way.was_cut.set()
        self.n_sent += 1
        if way.cut or self.random.random() < way.loss:
            self.n_lost += 1
            return
        for _ in range(2 if self.random.random() < way.twice else 1):
            due = time.monotonic() + way.delay_s + way.jitter_s * self.random.random()
            heapq.heappush(self.under_way, (due, self.random.random(), packet, ends[1]))

    def deliver(self):
        """How long until the next is due, None: nothing is under way."""
        while self.under_way:
            left = self.under_way[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, packet, to = heapq.heappop(self.under_way)
            try:
                os.write(self.hosts[to].tun, packet)
            except OSError:  # its queue is full: lost
                self.n_lost += 1
        return None

    def swap(self, before, host):
        with self.lock:
            self.hosts[host.ip] = host
            os.close(before.tun)
            before.close()

    def run(self):
        left = 0
        while True:
            with self.lock:
                tuns = [host.tun for host in self.hosts.values()]
            poll = select.poll()
            for one in (*tuns, self.closing):
                poll.register(one, select.POLLIN)
            bound = IDLE_S if left is None else min(left, IDLE_S)
            ready = [one for one, _ in poll.poll(1000 * bound)]
            if self.closing in ready:
                return
            with self.lock:
                tuns = [host.tun for host in self.hosts.values() if host.tun in ready]
                for tun in tuns:
                    try:
                        self.take(os.read(tun, 65536))
                    except OSError:
                        pass
                left = self.deliver()

    def close(self):
        os.write(self.wake, b"x")
        self.thread.join(10)
        os.close(self.closing)
        os.close(self.wake)
        for host in self.hosts.values():
            os.close(host.tun)
            host.close()


class Net:
    """One scenario's hosts, its wire and what runs there."""

    def __init__(self, checkpoints, names, seed=1):
        self.checkpoints, self.processes = checkpoints, []
        self.hosts = {name: Host(name, number + 1) for number, name in enumerate(names)}
        self.wire = Wire(self.hosts.values(), seed)

    def __getitem__(self, name):
        return self.hosts[name]

    def start(self, host, *arguments):
        process = Process(*arguments, program=[*self[host].command(), "env", "UCX_TLS=tcp",
                                               "UCX_NET_DEVICES=weir0", "WEIR_INSECURE=1", WEIR])
        process.host = self[host]
        self.processes.append(process)
        return process

    def checkpoint(self, version):
        return os.path.join(self.checkpoints, str(version))

    def serve(self, host="directory", port=0, *more):
        directory = self.start(host, "serve", "--listen", f"{self[host].ip}:{port}", "--json",
                               *more)
        said = directory.line()
        if said is None:
            raise AssertionError(directory.wait())
        self.address = said["address"]
        return directory

    def flow(self, host, timeout_s, lease_s):
        return ["--directory", self.address, *MODEL, "--json", "--listen", self[host].ip,
                "--timeout", str(timeout_s), "--lease", str(lease_s), "--threads", "1"]

    def trainer(self, host, rank=0, n_ranks=1, timeout_s=20, lease_s=30):
        return self.start(host, "publish", "--follow", "--version", "1", "--rank", str(rank),
                          "--ranks", str(n_ranks), *self.flow(host, timeout_s, lease_s))

    def replica(self, host, name, timeout_s=20, lease_s=30):
        return self.start(host, "receive", "--follow", "--name", name, "--config",
                          os.path.join(self.checkpoint(1), "config.json"),
                          *self.flow(host, timeout_s, lease_s))

    def verify(self, host, name, version):
        """The live replica holds exactly this version's bytes."""
        judge = self.start(host, "verify", self.checkpoint(version), "--replica", name,
                           *self.flow(host, 20, 30)[:-4])
        said = judge.line()
        if said is None:
            raise AssertionError(judge.wait())
        if not said["verified"] or said["version"] != version:
            raise AssertionError(said)

    def replace(self, name):
        """Another host at the same address: the one before is gone with all that ran there, and so
        are its connections, of which nobody is told."""
        before = self.hosts[name]
        for host in self.hosts.values():
            if host is not before:
                self.wire.cut(before, host)
        for process in self.processes:
            if process.host is before:
                process.process.kill()
                process.process.wait()
        self.hosts[name] = Host(name, int(before.ip.rsplit(".", 1)[1]))
        self.wire.swap(before, self.hosts[name])
        for host in self.hosts.values():
            self.wire.heal(self.hosts[name], host)

    def close(self):
        """Gives what everybody's last lines on stderr were."""
        said = []
        for process in reversed(self.processes):
            process.process.kill()
            _, errors = process.process.communicate()
            lines = errors.decode(errors="replace").splitlines()[-4:]
            said += [f"{process.host.name}: {process.arguments[0]}: {line}" for line in lines]
        self.wire.close()
        return "\n".join(said)
