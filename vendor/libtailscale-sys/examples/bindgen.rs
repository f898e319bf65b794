//! Writes the declarations of `tailscale.h` to standard output. Run by `scripts/bindings`; needs
//! libclang.

use std::path::Path;

fn main() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../libtailscale/tailscale.h");
    let bindings = bindgen::builder()
        .header(header.to_str().expect("the path of the header is UTF-8"))
        .use_core()
        .allowlist_item("(tailscale|TAILSCALE)_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .translate_enum_integer_types(true)
        .derive_default(true)
        .derive_debug(true)
        .merge_extern_blocks(true)
        // They would hold for one word size only; tests/abi.rs asserts what matters for all.
        .layout_tests(false)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("bindgen knows Rust 1.85"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .wrap_unsafe_ops(true)
        .disable_header_comment()
        .raw_line("// Made from tailscale.h by scripts/bindings. Do not edit.")
        .generate()
        .expect("tailscale.h can be read");
    // C makes an enum without negative members unsigned, but the calls return int32_t.
    print!(
        "{}",
        bindings.to_string().replace(
            "pub type tailscale_code = u32;",
            "pub type tailscale_code = i32;"
        )
    );
}
