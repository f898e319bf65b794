"""Checks what a machine can check in deploy/, docs/running/ and the Dockerfile; prints what is
wrong, and exits with 1 then.

Kubernetes objects against Kubernetes' own schemas, and against the confinement that we promise
(restricted pod security and more); compose files for the same confinement; each TB_ variable
anywhere against the table of settings; each base image, action and tool of a workflow for a name
that cannot be moved to something else.
"""

import pathlib
import re
import sys

import kubernetes_validate
import yaml

root = pathlib.Path(__file__).resolve().parents[2]
wrong = []


def must(condition, where, what):
    if not condition:
        wrong.append(f"{where}: {what}")


def main():
    objects = kubernetes(root / "deploy/kubernetes")
    must({"Deployment", "CronJob", "NetworkPolicy", "PersistentVolumeClaim"} <= {o["kind"] for o in objects}, "deploy/kubernetes", "an object is missing")
    objects += state_in_secret(root / "deploy/kubernetes/state-in-secret")
    compose(root / "deploy/compose/compose.yaml")
    variables()
    base_images()
    workflows()
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(objects)} Kubernetes objects, {known_count()} known variables")


def kubernetes(directory):
    objects = []
    for path in sorted(directory.glob("*.yaml")):
        if path.name == "kustomization.yaml":
            kustomization(path)
            continue
        for thing in valid(path):
            objects.append(thing)
            if thing["kind"] == "Deployment":
                must(thing["spec"]["replicas"] == 1 and thing["spec"]["strategy"] == {"type": "Recreate"}, path.name, "two pods could share one identity")
                must(thing["spec"]["selector"]["matchLabels"] == thing["spec"]["template"]["metadata"]["labels"], path.name, "the selector does not match the pods")
                pod(path.name, thing["spec"]["template"]["spec"], ["server", "start"])
            elif thing["kind"] == "CronJob":
                must(thing["spec"]["concurrencyPolicy"] == "Forbid", path.name, "two passes could run at once")
                pod(path.name, thing["spec"]["jobTemplate"]["spec"]["template"]["spec"], ["server", "housekeeping"])
            must(thing["kind"] not in ("Service", "Role", "RoleBinding", "ClusterRole", "Secret"), path.name, f"{thing['kind']}: nothing of tailbone needs one")
    return objects


def valid(path):
    for thing in yaml.safe_load_all(path.read_text()):
        try:
            kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{path.name}: {error.message}")
        yield thing


def state_in_secret(directory):
    """The variant with a right: for one secret, given by name, and not to make or list any."""
    path = directory / "secret.yaml"
    objects = list(valid(path))
    kinds = {thing["kind"]: thing for thing in objects}
    must(set(kinds) == {"Secret", "Role", "RoleBinding"}, path.name, f"has {sorted(kinds)}")
    name = kinds["Secret"]["metadata"]["name"]
    must("data" not in kinds["Secret"] and "stringData" not in kinds["Secret"], path.name, "applying it would overwrite the state")
    expected = [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": ["get", "update", "patch"]}]
    must(kinds["Role"]["rules"] == expected, path.name, "other rights than the store asks for")
    must(kinds["RoleBinding"]["roleRef"]["name"] == kinds["Role"]["metadata"]["name"], path.name, "the binding is of another role")
    changes = yaml.safe_load((directory / "kustomization.yaml").read_text())
    must(changes["resources"] == ["../", path.name], directory.name, "not the base and the secret")
    patch = {change["path"]: change["value"] for change in yaml.safe_load(changes["patches"][0]["patch"])}
    must(patch["/spec/template/spec/automountServiceAccountToken"] is True, directory.name, "the pod has no token to reach the secret with")
    state = {"name": "TB_SERVER_TAILSCALE_STATE", "value": f"kube:{name}"}
    must(patch["/spec/template/spec/containers/0/env/-"] == state, directory.name, "the server does not look for its state there")
    return objects


def kustomization(path):
    listed = yaml.safe_load(path.read_text())["resources"]
    there = sorted(p.name for p in path.parent.glob("*.yaml") if p != path)
    must(sorted(listed) == there, path.name, f"lists {sorted(listed)}, there are {there}")


def pod(where, spec, args):
    must(spec.get("automountServiceAccountToken") is False, where, "the pod gets a token for Kubernetes")
    must(not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")), where, "the pod shares a namespace with its host")
    context = spec["securityContext"]
    must(context.get("runAsNonRoot") is True and context.get("runAsUser") == 65532 and context.get("fsGroup") == 65532, where, "not the image's user")
    must(context.get("seccompProfile") == {"type": "RuntimeDefault"}, where, "no seccomp profile")
    must(not any("hostPath" in volume for volume in spec["volumes"]), where, "a directory of the host is mounted")
    for container in spec["containers"]:
        fence = container["securityContext"]
        must(fence.get("allowPrivilegeEscalation") is False, where, "privileges can be gained")
        must(fence.get("capabilities") == {"drop": ["ALL"]}, where, "capabilities are left")
        must(fence.get("readOnlyRootFilesystem") is True, where, "the root can be written")
        must("memory" in container["resources"].get("limits", {}), where, "no memory limit")
        must(container["args"] == args and "command" not in container, where, f"does not run {args}")
        must([m["mountPath"] for m in container["volumeMounts"]] == ["/var/lib/tailbone"], where, "keys and state are not in the volume")
        for entry in container["env"]:
            must(not ("AUTHKEY" in entry["name"] and "value" in entry), where, "a key is written into a manifest")


def compose(path):
    document = yaml.safe_load(path.read_text())
    must(set(document) <= {"name", "services", "volumes"}, path.name, f"unknown part among {sorted(document)}")
    must({"tailbone", "housekeeping"} == set(document["services"]), path.name, "server and housekeeping are expected")
    for name, service in document["services"].items():
        where = f"{path.name}, {name}"
        must(service.get("read_only") is True, where, "the root can be written")
        must(service.get("cap_drop") == ["ALL"] and "cap_add" not in service, where, "capabilities are left")
        must(service.get("security_opt") == ["no-new-privileges:true"], where, "privileges can be gained")
        must(service.get("user") == "65532:65532" and "mem_limit" in service, where, "user or memory limit")
        must(not {"ports", "network_mode", "privileged", "pid", "devices"} & set(service), where, "more than it needs")
        volume, mount = service["volumes"][0].split(":")
        must(volume in document["volumes"] and mount == "/var/lib/tailbone", where, "keys and state are not in the volume")


SECTIONS = "src/config/sections"


def known():
    """The variables of the settings, read from their sections."""
    names = set()
    text = "".join(path.read_text() for path in sorted((root / SECTIONS).glob("*.rs")))
    for key, kind in re.findall(r'\brow\(\s*"([^"]+)",\s*(?:ValueKind::)?(\w+)', text):
        name = "TB_" + re.sub(r"[.-]", "_", key).upper()
        names |= {name, f"{name}_FILE"} if kind == "Secret" else {name}
    return names


def known_count():
    return len(known())


def variables():
    names = known()
    must(len(names) > 20, SECTIONS, "the settings could not be read from it")
    places = [root / "Dockerfile", root / "README.md", *(root / "docs/how-to").glob("*.md"), *(p for p in (root / "deploy").rglob("*") if p.is_file())]
    for path in places:
        for name in sorted(set(re.findall(r"\bTB_[A-Z0-9_]+", path.read_text()))):
            # A name such as TB_KEYS_ in a text stands for all that begin with it.
            found = any(known.startswith(name) for known in names) if name.endswith("_") else name in names
            must(found, path.relative_to(root), f"{name} is no setting")


def base_images():
    for name, image in re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", (root / "Dockerfile").read_text(), re.M):
        must(re.search(r":[^/:@]+@sha256:[0-9a-f]{64}$", image), "Dockerfile", f"{name} has no tag with a digest: {image}")


def workflows():
    """No code of others runs under a name that can be moved to other code."""
    paths = sorted((root / ".github/workflows").glob("*.yml"))
    must(paths, ".github/workflows", "nothing is there")
    for path in paths:
        text, where = path.read_text(), f".github/workflows/{path.name}"
        for action in re.findall(r"\buses: *(\S+)", text):
            must(re.search(r"@[0-9a-f]{40}$", action), where, f"{action} is not named by a commit")
        for image in re.findall(r"\b(?:image|container): *([^\s{]+:[^\s]+)", text):
            must(re.search(r"@sha256:[0-9a-f]{64}$", image), where, f"{image} is not named by a digest")
        must("@latest" not in text, where, "@latest is whatever it is that day")


main()
