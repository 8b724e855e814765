#!/usr/bin/env python3
"""Checks what `viewledger prove` and `viewledger seal --export` gave, with Python's standard library alone.

    verify_proof.py --key PUBLIC_KEY proof.json      that a record was in the archive when it was sealed
    verify_proof.py --key PUBLIC_KEY seals/*.json    that seals are signed, and that the archive only grew
Ed25519 is the verification of RFC 8032, 5.1.7, written out below. docs/audit.md says what the bytes are."""
import argparse, datetime, hashlib, json, re, struct, sys

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
DOMAIN = b"viewledger seal 1\n"
FIXED = {"boolean": ">?", "int32": ">i", "date": ">i", "int64": ">q", "timestamp": ">q", "float64": ">d"}

def require(fine, fault):
    if not fine:
        sys.exit(f"NOT PROVEN: {fault}")

def point(data):
    y, sign = int.from_bytes(data, "little") & (2**255 - 1), data[-1] >> 7
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if (x * x - square) % P == 0 else x * pow(2, (P - 1) // 4, P) % P
    require(y < P and (x * x - square) % P == 0 and (x or not sign), "a key or signature is no point of the curve")
    return (P - x if x & 1 != sign else x, y)

def add(a, b):
    t = D * a[0] * b[0] * a[1] * b[1] % P
    x, y = (a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, P), (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P)
    return (x % P, y % P)

def times(number, base):
    total = (0, 1)
    while number:
        total, base, number = add(total, base) if number & 1 else total, add(base, base), number >> 1
    return total

def require_signed(seal, key):
    text, signature = seal["statement"].encode(), bytes.fromhex(seal["signature"])
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    h = int.from_bytes(hashlib.sha512(r + key + DOMAIN + text).digest(), "little") % L
    base = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    require(len(key) == 32 and len(signature) == 64 and s < L, "a key or signature has a wrong length")
    require(times(s, base) == add(point(r), times(h, point(key))), "a seal is not signed with the key")
    return json.loads(text)

def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()

def climb(path, at, last, new, old=b""):
    """RFC 9162, 2.1.3.2 and 2.1.4.2: the roots that a path leads to, or nothing if it is too short or too long."""
    for sibling in map(bytes.fromhex, path):
        if last == 0:
            return b"", b""
        if at & 1 or at == last:
            new, old = sha256(b"\1", sibling, new), sha256(b"\1", sibling, old)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new = sha256(b"\1", new, sibling)
        at, last = at >> 1, last >> 1
    return (new, old) if last == 0 else (b"", b"")

def consistent(path, older, newer):
    m, n, roots = older["epochs"], newer["epochs"], (bytes.fromhex(newer["root"]), bytes.fromhex(older["root"]))
    if m in (0, n):
        return not path and (m == 0 or roots[0] == roots[1])
    at, last, path = m - 1, n - 1, list(path)
    while at & 1:
        at, last = at >> 1, last >> 1
    first = roots[1] if m & (m - 1) == 0 else bytes.fromhex(path.pop(0)) if path else b""
    return m < n and climb(path, at, last, first, first) == roots

def kind(text):
    if text.startswith("list<"):
        item, rest = kind(text[5:])
        return ("list", item), rest[1:]
    if text.startswith("struct<"):
        fields, rest = [], text[6:]
        while rest[0] != ">" or not fields:
            name, end = json.JSONDecoder().raw_decode(rest[1:])
            field, rest = kind(rest[end + 2:])
            fields.append((name, field))
        return ("struct", tuple(fields)), rest[1:]
    name = re.match(r"[a-z0-9]+(\(\d+,-?\d+\))?", text).group()
    return name, text[len(name):]

def value(kind, data):
    if data[0] == 0:
        return None, data[1:]
    data, size = data[1:], int.from_bytes(data[1:5], "big")
    if kind in FIXED:
        size = struct.calcsize(FIXED[kind])
        return struct.unpack(FIXED[kind], data[:size])[0], data[size:]
    if kind in ("text", "bytes"):
        return data[4:4 + size].decode() if kind == "text" else data[4:4 + size].hex(), data[4 + size:]
    if kind[0] in ("list", "struct"):
        fields, data = (kind[1], data) if kind[0] == "struct" else (enumerate([kind[1]] * size), data[4:])
        shown = {}
        for name, field in fields:
            shown[name], data = value(field, data)
        return shown if kind[0] == "struct" else list(shown.values()), data
    return int.from_bytes(data[:16], "big", signed=True), data[16:]  # decimal: the unscaled number

def check_proof(proof, key):
    sealed, epoch = require_signed(proof["seal"], key), json.loads(proof["epoch"])
    tree, record = sealed["streams"][proof["stream"]], bytes.fromhex(proof["record"])
    root, _ = climb(proof["epoch_path"], epoch["epoch"] - 1, tree["epochs"] - 1, sha256(b"\0", proof["epoch"].encode()))
    require(epoch["stream"] == proof["stream"] and 0 < epoch["epoch"] <= tree["epochs"], "the epoch is another one")
    require(root.hex() == tree["root"], "the epoch is not in the seal")
    require(sha256(proof["columns"].encode()).hex() == epoch["columns"], "the columns are others")
    root, _ = climb(proof["record_path"], proof["record_index"], epoch["records"] - 1, sha256(b"\0", record))
    require(0 <= proof["record_index"] < epoch["records"] and root.hex() == epoch["root"], "the record is not in the epoch")
    shown, place = {}, (proof["partition"], proof["offset"])
    for name, text in json.loads(proof["columns"]):
        shown[name], record = value(kind(text)[0], record)
    require((shown["_partition"], shown["_offset"]) == place and not record, "the record is another one")
    at = datetime.datetime.fromtimestamp(sealed["sealed_at"] / 1e6, datetime.timezone.utc)
    where = f"{proof['stream']}, partition {place[0]}, offset {place[1]}, at seal {sealed['seal']} of {at}"
    print(json.dumps(shown, indent=1, ensure_ascii=False), f"PROVEN: in {where}", sep="\n")

def check_seals(seals, key):
    older, before = {"seal": -1}, ""
    for seal in sorted(seals, key=lambda seal: json.loads(seal["statement"])["seal"]):
        newer = require_signed(seal, key)
        if newer["seal"] == older["seal"] + 1:
            follows = newer["previous"] == sha256(before.encode()).hex()
            require(follows, f"seal {newer['seal']} does not follow the one before it")
            for name, tree in older["streams"].items():
                fine = name in newer["streams"] and consistent(seal["consistency"].get(name, []), tree, newer["streams"][name])
                require(fine, f"{name} did not only grow up to seal {newer['seal']}")
        elif older["seal"] > 0:
            print(f"between seals {older['seal']} and {newer['seal']} nothing is proven: copies are missing")
        older, before = newer, seal["statement"]
    print(f"PROVEN: {len(seals)} seals are signed, up to seal {older['seal']}")

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--key", required=True, type=bytes.fromhex, help="public key, 64 hexadecimal digits")
    arguments.add_argument("files", nargs="+", help="a proof, or seals")
    given = arguments.parse_args()
    try:
        documents = [json.load(open(path, encoding="utf-8")) for path in given.files]
        proofs = [document for document in documents if "record" in document]
        for proof in proofs:
            check_proof(proof, given.key)
        if len(proofs) < len(documents):
            check_seals([document for document in documents if "record" not in document], given.key)
    except (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, struct.error) as error:
        sys.exit(f"NOT PROVEN: not readable: {error!r}")
