//! docs/SETTINGS.md: the settings, for a reader.

use super::{
    setting::{Kind, PROBE, SECTIONS, SIZE_UNITS, Setting, TIME_UNITS, Usual},
    table,
};

const HEAD: &str = "\
# Settings

Every setting of `afterimage witness`, `protect` and `standby` has one name. It is the flag's on a command line (`--epoch 20ms`), the
key's in the section of that command in a file of `--config` (`epoch = \"20ms\"`), with `_` for `-`; and the word's in `afterimage set`
(`epoch=20ms`). A flag wins over the file, the file over the default. Two lists have a flag each for one element: `--nic` is the list
`nics`, and QEMU's command after `--` the list `qemu`. Times have a unit (`us`, `ms`, `s`, `m`, `h`), and so have sizes (`KiB`, `MiB`,
`GiB`). [examples/afterimage.toml](examples/afterimage.toml) is a file with all of them.

\"needed\" has to be said, as a flag or in the file. What is *live* can be changed while the pair runs: `afterimage set`. How often a
running pair beats is changed on both sides at once: `afterimage keepalive set`.

Files with the keys of before, which had the unit in their name, are still understood; `afterimage config check FILE` says what each is
called now. A file must not have both.

This page is what `afterimage config settings` prints.
";

/// The page.
#[must_use]
pub fn manual() -> String {
    let sections = SECTIONS.map(|(section, on)| {
        let rows: Vec<_> = table::of(on).map(row).collect();
        format!(
            "\n## `afterimage {section}`, `[{section}]`\n\n| setting | allowed | default | |\n|---|---|---|---|\n{}",
            rows.concat()
        )
    });
    let probe: Vec<_> = table::of(PROBE).map(|setting| format!("`--{}`", setting.flag())).collect();
    let probe = format!("\n`afterimage keepalive probe` and `serve` take {} as well.\n", probe.join(", "));
    let old =
        table::SETTINGS.iter().filter_map(|setting| Some(format!("| `{}` | `{}` |\n", setting.old?.0, setting.key)));
    let mut old: Vec<_> = old.collect();
    old.dedup();
    let old = format!("\n## Keys of before\n\n| key of before | key |\n|---|---|\n{}", old.concat());
    [HEAD.to_owned(), sections.concat(), probe, old].concat()
}

fn row(setting: &Setting) -> String {
    let name = match (setting.key, setting.once) {
        ("qemu", _) => "`qemu`, after `--`".to_owned(),
        (_, true) => format!("`--{}`, no key", setting.flag()),
        (key, false) => setting.each.map_or_else(|| format!("`{key}`"), |each| format!("`{key}`, `--{each}`")),
    };
    let live = if setting.live { " *live*" } else { "" };
    let allowed = match (setting.range(), setting.kind) {
        (Some(range), Kind::Time(..)) => format!("{range} ({TIME_UNITS})"),
        (Some(range), Kind::Size(..)) => format!("{range} ({SIZE_UNITS})"),
        (Some(range), _) if setting.note.is_empty() => range,
        (Some(range), _) => format!("{range}: {}", setting.note),
        (None, Kind::Word(words)) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        (None, Kind::Switch) => "`true`, `false`".to_owned(),
        (None, Kind::List(..)) => format!("list of {}", setting.form),
        (None, _) => setting.form.to_owned(),
    };
    let usual = match (setting.usual, setting.kind) {
        (Usual::Needed(_), _) => "needed".to_owned(),
        (Usual::Is(value), _) => format!("`{value}`"),
        (Usual::Follows(words), _) => words.to_owned(),
        (Usual::Nothing, Kind::Switch) => "`false`".to_owned(),
        (Usual::Nothing, _) => "none".to_owned(),
    };
    format!("| {name}{live} | {allowed} | {usual} | {} |\n", setting.says)
}

#[cfg(test)]
mod tests {
    /// `cargo run -p afterimage -- config settings > docs/SETTINGS.md`
    #[test]
    fn the_page_is_what_the_table_says() {
        let page = include_str!("../../../docs/SETTINGS.md");
        assert!(page == super::manual(), "docs/SETTINGS.md is stale: `afterimage config settings > docs/SETTINGS.md`");
    }
}
