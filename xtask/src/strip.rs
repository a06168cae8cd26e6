//! Takes out of a kernel object what neither the loader nor the kernel reads: four fifths of it is DWARF, from which
//! bpf-linker has made BTF by then, and all of it would lie in the agent.
//!
//! In: an ELF file. Out: one without sections of debug info, without relocations of those and of BTF (whose values are in
//! place; loaders relocate nothing but programs), and without symbols of what is gone. Programs, tables, `.BTF` and
//! `.BTF.ext` stay as they are.

use anyhow::{Context, Result};
use object::build::elf::{Builder, Section, SectionData};
use object::elf::SHT_STRTAB;

pub(crate) fn strip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut object = Builder::read(bytes).context("read the object")?;
    for section in &mut object.sections {
        section.delete = is_ballast(section);
    }
    object.delete_orphans();
    // LLVM keeps the names of sections beside those of symbols; what is written has a section for each.
    if !object.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = object.sections.add();
        (names.name, names.sh_type, names.data) = (b".shstrtab"[..].into(), SHT_STRTAB, SectionData::SectionString);
    }
    let mut stripped = Vec::new();
    object.write(&mut stripped).context("write the object without debug info")?;
    Ok(stripped)
}

fn is_ballast(section: &Section<'_>) -> bool {
    let name = section.name.as_slice();
    [&b".debug_"[..], b".rel.debug_", b".rel.BTF"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use object::{Endianness, Object, ObjectSection, ObjectSymbol, elf};

    use super::*;

    #[test]
    fn programs_and_btf_stay_and_debug_info_goes_with_its_symbols() {
        let mut whole = Builder::new(Endianness::Little, true);
        let mut named = |name: &'static str, sh_type, data| {
            let section = whole.sections.add();
            (section.name, section.sh_type, section.data) = (name.as_bytes().into(), sh_type, data);
            section.id()
        };
        let data = || SectionData::Data(vec![7; 8].into());
        let program = named("classifier", elf::SHT_PROGBITS, data());
        let dwarf = named(".debug_info", elf::SHT_PROGBITS, data());
        named(".BTF", elf::SHT_PROGBITS, data());
        named(".BTF.ext", elf::SHT_PROGBITS, data());
        named(".symtab", elf::SHT_SYMTAB, SectionData::Symbol);
        named(".strtab", SHT_STRTAB, SectionData::String);
        named(".shstrtab", SHT_STRTAB, SectionData::SectionString);
        for (name, section) in [("tc_ingress", program), ("a_type", dwarf)] {
            let symbol = whole.symbols.add();
            (symbol.name, symbol.section) = (name.as_bytes().into(), Some(section));
        }
        let mut bytes = Vec::new();
        whole.write(&mut bytes).unwrap();

        let stripped = strip(&bytes).unwrap();
        let file = object::File::parse(&*stripped).unwrap();
        let of = |name| file.section_by_name(name).map(|section| section.data().unwrap().to_vec());
        for stays in ["classifier", ".BTF", ".BTF.ext"] {
            assert_eq!(of(stays), Some(vec![7; 8]), "{stays}");
        }
        assert_eq!(of(".debug_info"), None);
        let symbols: Vec<_> = file.symbols().map(|symbol| symbol.name().unwrap()).collect();
        assert_eq!(symbols, ["tc_ingress"]);
    }
}
