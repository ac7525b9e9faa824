//! Generates messages, services and clients from `protos/` into `OUT_DIR`, without `protoc`.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const PROTOS: [&str; 6] = ["agent", "csi", "health", "kata", "oci", "types"];
const SERVICES: [&str; 3] = ["agent", "health", "kata"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=protos");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    Codegen::new()
        .out_dir(&out)
        .inputs(PROTOS.map(|name| format!("protos/{name}.proto")))
        .include("protos")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false).lite_runtime(true))
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    write_mod(&out)
}

/// The module list: the generator's own would also name files without a service.
fn write_mod(out: &Path) -> io::Result<()> {
    let messages = PROTOS.iter().map(|name| format!("pub mod {name};\n"));
    let services = SERVICES.iter().map(|name| format!("pub mod {name}_ttrpc;\n"));
    fs::write(out.join("mod.rs"), messages.chain(services).collect::<String>())
}
