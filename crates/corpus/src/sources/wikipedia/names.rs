//! Names that a wiki's language decides: what its files and categories are called, how it marks a redirect, and which
//! prefixes of a link are other Wikipedias.
//!
//! Facts from the wikis themselves (`action=query&meta=siteinfo&siprop=namespaces|namespacealiases`, namespaces -2, 6
//! and 14, and the magic word `redirect`), lower-case, as `MediaWiki` compares them.

/// The 20 languages of LLaMA's Wikipedia (paper, section 2.1): Latin or Cyrillic script.
pub const LANGUAGES: [&str; 20] =
    ["bg", "ca", "cs", "da", "de", "en", "es", "fr", "hr", "hu", "it", "nl", "pl", "pt", "ro", "ru", "sl", "sr", "sv", "uk"];

/// What a link does on the page, as far as its text is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// A link to read.
    Page,
    /// An image or another file with its caption.
    Media,
    /// Puts the page into a category.
    Category,
    /// The same page in another language.
    Language,
}

/// The media and the category namespaces of a language, without the English names, which hold in every wiki.
fn local(language: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match language {
        "bg" => (&["медия", "файл", "картинка"], &["категория"]),
        "ca" => (&["fitxer", "imatge"], &["categoria"]),
        "cs" => (&["soubor", "média", "obrázek", "obrázok"], &["kategorie"]),
        "da" => (&["billede", "fil"], &["kategori"]),
        "de" => (&["medium", "datei", "bild"], &["kategorie"]),
        "es" => (&["medio", "archivo", "imagen"], &["categoría", "cat"]),
        "fr" => (&["média", "fichier"], &["catégorie"]),
        "hr" => (&["mediji", "dt", "slika", "f", "datoteka"], &["kategorija", "ct", "kt"]),
        "hu" => (&["kép", "fájl", "média"], &["kategória"]),
        "it" => (&["immagine"], &["categoria", "cat"]),
        "ltg" => (&["medeja", "fails"], &["kategoreja"]),
        "nl" => (&["bestand", "afbeelding"], &["categorie"]),
        "pl" => (&["plik", "grafika"], &["kategoria"]),
        "pt" => (&["multimédia", "ficheiro", "arquivo", "imagem"], &["categoria"]),
        "ro" => (&["fişier", "fișier", "imagine"], &["categorie"]),
        "ru" => (&["медиа", "файл", "изображение"], &["категория", "к"]),
        "sl" => (&["slika", "datoteka"], &["kategorija"]),
        "sr" => {
            (&["датотека", "медија", "медиј", "слика", "datoteka", "medija", "medij", "slika"], &["категорија", "kategorija"])
        }
        "sv" => (&["fil", "bild"], &["kategori"]),
        "uk" => (&["медіа", "медиа", "файл", "зображення", "изображение"], &["категорія", "категория"]),
        _ => (&[], &[]),
    }
}

/// The words after `#` that make a page a redirect, in all of the languages: a page with one of another language's is one
/// all the same, in the wikis that fall back to it.
const REDIRECTS: &[&str] = &[
    "redirect",
    "виж",
    "пренасочване",
    "přesměruj",
    "omdiriger",
    "weiterleitung",
    "redirección",
    "redireccion",
    "redirection",
    "preusmjeri",
    "átirányítás",
    "rinvia",
    "doorverwijzing",
    "patrz",
    "przekieruj",
    "tam",
    "redirecionamento",
    "redirecteaza",
    "перенаправление",
    "перенапр",
    "preusmeritev",
    "преусмери",
    "preusmeri",
    "omdirigering",
    "перенаправлення",
    "перенапрямлення",
];

/// The codes of the Wikipedias: prefixes of links to the same page in another language.
const WIKIPEDIAS: &str = " aa ab ace ady af ak als alt am ami an ang ar arc ary arz as ast atj av avk awa ay az azb ba ban bar \
    bat-smg bcl be be-tarask be-x-old bg bh bi bjn blk bm bn bo bpy br bs bug bxr ca cbk-zam cdo ce ceb ch cho chr chy ckb co cr \
    crh cs csb cu cv cy cz da dag de din diq dk dsb dty dv dz ee el eml en eo epo es et eu ext fa fat ff fi fiu-vro fj fo fon \
    fr frp frr fur fy ga gag gan gcr gd gl glk gn gom gor got gpe gu guc gur guw gv ha hak haw he hi hif ho hr hsb ht hu hy hyw \
    hz ia id ie ig igl ii ik ilo inh io is it iu ja jam jbo jp jv ka kaa kab kbd kbp kcg kg ki kj kk kl km kn ko koi kr krc ks \
    ksh ku kv kw ky la lad lb lbe lez lfn lg li lij lld lmo ln lo lrc lt ltg lv mad mai map-bms mdf mg mh mhr mi min minnan mk \
    ml mn mni mnw mo mr mrj ms mt mus mwl my myv mzn na nah nan nap nb nds nds-nl ne new ng nia nl nn no nov nqo nrm nso nv ny \
    oc olo om or os pa pag pam pap pcd pcm pdc pfl pi pih pl pms pnb pnt ps pt pwn qu rm rmy rn ro roa-rup roa-tara ru rue rw \
    sa sah sat sc scn sco sd se sg sh shi shn si simple sk skr sl sm smn sn so sq sr srn ss st stq su sv sw szl szy ta tay tcy \
    te tet tg th ti tk tl tly tn to tpi tr trv ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo wa war wo wuu xal xh \
    xmf yi yo yue za zea zh zh-cfr zh-classical zh-cn zh-min-nan zh-tw zh-yue zu ";

/// Endings of files: what a link with a namespace that is not known here leads to, is a file if it has one of them.
const FILES: [&str; 18] = [
    ".djvu", ".flac", ".gif", ".jpeg", ".jpg", ".mid", ".mp3", ".oga", ".ogg", ".ogv", ".pdf", ".png", ".svg", ".tif", ".tiff",
    ".wav", ".webm", ".webp",
];

/// The longest prefix that is looked at, in bytes.
const LONGEST: usize = 40;

/// What a link to `target` is on a page in `language`. A leading colon, which makes every link one to read, is the caller's.
pub(super) fn link_kind(target: &str, language: &str) -> LinkKind {
    let head = &target[..target.floor_char_boundary((LONGEST + 1).min(target.len()))];
    let Some((prefix, _)) = head.split_once(':') else { return LinkKind::Page };
    let mut name = String::with_capacity(LONGEST);
    // The stripper's own marks and direction marks are not part of a name; `_` is a space.
    for c in prefix.chars().filter(|c| !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}')) {
        name.extend(if c == '_' { ' ' } else { c }.to_lowercase());
    }
    let name = name.trim();
    let (media, category) = local(language);
    if matches!(name, "file" | "image" | "media") || media.contains(&name) {
        LinkKind::Media
    } else if name == "category" || category.contains(&name) {
        LinkKind::Category
    } else if name != language && is_wikipedia(name) {
        LinkKind::Language
    } else if !name.is_empty() && name.chars().all(char::is_alphabetic) && is_file(target) {
        LinkKind::Media
    } else {
        LinkKind::Page
    }
}

fn is_file(target: &str) -> bool {
    let target = target.trim_end().as_bytes();
    let ends = |ending: &str| {
        target.len().checked_sub(ending.len()).is_some_and(|at| target[at..].eq_ignore_ascii_case(ending.as_bytes()))
    };
    FILES.iter().any(|ending| ends(ending))
}

fn is_wikipedia(code: &str) -> bool {
    is_code(code) && WIKIPEDIAS.contains(&format!(" {code} "))
}

/// Whether this has the form of a Wikipedia's code.
pub(super) fn is_code(code: &str) -> bool {
    (2..=12).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

/// Whether a page is a redirect: `#`, the word, perhaps a colon, and a link.
pub(super) fn is_redirect(wikitext: &str) -> bool {
    let Some(rest) = wikitext.trim_start().strip_prefix('#') else { return false };
    let end = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    word.len() <= LONGEST
        && REDIRECTS.contains(&word.to_lowercase().as_str())
        && after.trim_start().trim_start_matches(':').trim_start().starts_with("[[")
}
