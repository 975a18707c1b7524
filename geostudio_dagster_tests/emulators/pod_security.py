"""The rules of Kubernetes' Pod Security Standards, level ``restricted``, as they are published.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (for Linux pods; ``restricted``
contains ``baseline``). A pod is a document as it goes over the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}
_PROFILES = {"RuntimeDefault", "Localhost"}
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies"),
    *("net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time"),
    *("net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes"),
}
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def violations(pod: dict[str, Any]) -> list[str]:
    """The controls that the pod violates, in the words of the standard; none if it is admitted."""
    return sorted({*_baseline(pod), *_restricted(pod)})


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Containers of every kind."""
    spec = pod["spec"]
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return [container for kind in kinds for container in spec.get(kind) or []]


def _contexts(pod: dict[str, Any]) -> list[dict[str, Any]]:
    own = [container.get("securityContext") or {} for container in containers(pod)]
    return [pod["spec"].get("securityContext") or {}, *own]


def _baseline(pod: dict[str, Any]) -> Iterator[str]:
    yield from _machines(pod)
    for context in _contexts(pod):
        yield from _kernels(context)
    annotations = pod["metadata"].get("annotations") or {}
    for name, value in annotations.items():
        if name.startswith(_APPARMOR) and not value.startswith(("runtime/default", "localhost/")):
            yield "AppArmor"


def _machines(pod: dict[str, Any]) -> Iterator[str]:
    """What of the machine a pod may not have."""
    spec, contexts = pod["spec"], _contexts(pod)
    if any("windowsOptions" in c and c["windowsOptions"].get("hostProcess") for c in contexts):
        yield "HostProcess"
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "Host Namespaces"
    if any(context.get("privileged") for context in contexts):
        yield "Privileged Containers"
    if any("hostPath" in volume for volume in spec.get("volumes") or []):
        yield "HostPath Volumes"
    for container in containers(pod):
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield "Host Ports"


def _kernels(context: dict[str, Any]) -> Iterator[str]:
    """Which of the kernel's protections a security context may not take off."""
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield "AppArmor"
    linux = context.get("seLinuxOptions") or {}
    if linux.get("type", "") not in _SELINUX or linux.get("user") or linux.get("role"):
        yield "SELinux"
    if context.get("procMount", "Default") != "Default":
        yield "/proc Mount Type"
    if not {sysctl["name"] for sysctl in context.get("sysctls") or []} <= _SYSCTLS:
        yield "Sysctls"


def _restricted(pod: dict[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    whole = spec.get("securityContext") or {}
    if any(not _VOLUMES & set(volume) for volume in spec.get("volumes") or []):
        yield "Volume Types"
    if whole.get("runAsUser") == 0:
        yield "Running as Non-root user"
    for container in containers(pod):
        own = container.get("securityContext") or {}
        if own.get("allowPrivilegeEscalation") is not False:
            yield "Privilege Escalation"
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            yield "Running as Non-root"
        if own.get("runAsUser") == 0:
            yield "Running as Non-root user"
        profile = own.get("seccompProfile", whole.get("seccompProfile")) or {}
        if profile.get("type") not in _PROFILES:
            yield "Seccomp"
        capabilities = own.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            yield "Capabilities"
        if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            yield "Capabilities"
