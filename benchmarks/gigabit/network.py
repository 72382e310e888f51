"""Hosts that are no hosts: network namespaces joined by a bridge, each on a link of its own that tc holds to a rate.

    with Network(["scheduler", "server-0", "worker-0"], rate="1gbit") as network:
        process = network.start("server-0", ["parley-server", ...], log="server-0.log")
        network.enter("server-0")  # what stands in front of a command that is to run there
        network.address("server-0")  # "10.77.0.3"
        network.counters("server-0")  # what has gone through its interface
        network.cut("server-0"); network.deafen("server-0"); network.heal("server-0")

Needs root, `ip` and `tc`. Whatever happens, what was made is taken away again: processes first, then namespaces, with
which the kernel drops their interfaces. What a killed run has left is removed by the next. Linux, standard library only.
"""
import ctypes
import os
import re
import shutil
import signal
import subprocess

PREFIX = "parley-gbit"
SUBNET = "10.77.0"
# A millisecond's worth of bytes at a gigabit may leave at once, and a queue of 20 ms stands before the link: as a
# switch has.
BURST, LATENCY = "128kb", "20ms"
# In front of every TCP segment: Ethernet 14, IPv4 20, TCP 20 and its time stamps 12.
SEGMENT_HEADERS = 66


class NetworkError(Exception):
    pass


def missing():
    """Why no such network can be made here; None if it can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"'{tool}' is not installed (Debian: iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        run("ip", "netns", "add", name)
        try:
            run("ip", "-n", name, "link", "add", "name", "one", "type", "veth", "peer", "name", "two")
            run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "one", "root", "tbf", "rate", "1gbit", "burst",
                BURST, "latency", LATENCY)
        finally:
            run("ip", "netns", "del", name)
    except NetworkError as error:
        return f"this system does not allow it: {error}"
    return None


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def die_with_parent():
    """In a child before its program: the kernel ends it with us, also when we are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.setpgid(0, 0)  # Ctrl-C reaches this script alone, which ends them in order


def remove_leftovers():
    for line in run("ip", "netns", "list").splitlines():
        found = re.match(rf"{PREFIX}-(\d+)-", line)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            run("ip", "netns", "del", line.split()[0])


class Network:
    def __init__(self, hosts, rate):
        self.hosts, self.rate = list(hosts), rate
        self.made, self.processes, self.logs = [], [], []

    def space(self, name):
        return f"{PREFIX}-{os.getpid()}-{name}"

    def address(self, host):
        return f"{SUBNET}.{self.hosts.index(host) + 1}"

    def __enter__(self):
        try:
            remove_leftovers()
            hub = self.add_space("hub")
            run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", hub, "link", "set", "bridge", "up")
            for host in self.hosts:
                self.add_host(hub, host, self.port(host))
        except BaseException:
            self.close()
            raise
        return self

    def add_space(self, name):
        space = self.space(name)
        run("ip", "netns", "add", space)
        self.made.append(space)
        return space

    def add_host(self, hub, host, port):
        space = self.add_space(host)
        run("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port)
        run("ip", "-n", space, "link", "set", port, "netns", hub)
        run("ip", "-n", hub, "link", "set", port, "master", "bridge")
        run("ip", "-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        for where, device in ((space, "lo"), (space, "eth0"), (hub, port)):
            run("ip", "-n", where, "link", "set", device, "up")
        # What leaves the host, and what leaves the bridge towards it: a link that is full both ways.
        for where, device in ((space, "eth0"), (hub, port)):
            self.hold_to_rate(where, device)

    def hold_to_rate(self, space, device):
        run("ip", "netns", "exec", space, "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", self.rate,
            "burst", BURST, "latency", LATENCY)

    def port(self, host):
        return f"port{self.hosts.index(host)}"

    def cut(self, host):
        """Nothing goes to the host or comes from it any more: as when its cable is pulled."""
        run("ip", "-n", self.space("hub"), "link", "set", self.port(host), "down")

    def deafen(self, host):
        """What the host says gets out, nothing gets in."""
        run("ip", "netns", "exec", self.space("hub"), "tc", "qdisc", "replace", "dev", self.port(host), "root", "pfifo",
            "limit", "0")

    def heal(self, host):
        """What was cut or deafened is a link again, as it was."""
        run("ip", "-n", self.space("hub"), "link", "set", self.port(host), "up")
        self.hold_to_rate(self.space("hub"), self.port(host))

    def enter(self, host):
        return ["ip", "netns", "exec", self.space(host)]

    def start(self, host, command, log):
        file = open(log, "ab")
        self.logs.append(file)
        process = subprocess.Popen([*self.enter(host), *command], stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=file, preexec_fn=die_with_parent)
        self.processes.append(process)
        return process

    def counters(self, host):
        """Bytes and packets through the host's interface, both ways, and what of it is payload of TCP."""
        base = "/sys/class/net/eth0/statistics/"
        names = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
        text = run("ip", "netns", "exec", self.space(host), "cat", *[base + name for name in names])
        values = dict(zip(names, map(int, text.split())))
        packets = values["rx_packets"] + values["tx_packets"]
        values["payload"] = values["rx_bytes"] + values["tx_bytes"] - packets * SEGMENT_HEADERS
        return values

    def stop_processes(self):
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for file in self.logs:
            file.close()
        self.processes, self.logs = [], []

    def close(self):
        self.stop_processes()
        for space in reversed(self.made):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        self.made = []

    def __exit__(self, *ignored):
        self.close()
