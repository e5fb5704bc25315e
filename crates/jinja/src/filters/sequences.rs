//! Filters of lists and other things with items.

use std::rc::Rc;

use crate::args::{Args, flag, int};
use crate::ast::BinaryOp;
use crate::attributes;
use crate::error::{Error, ErrorKind, Result};
use crate::ops;
use crate::predicates;
use crate::text::MAX_MADE_ITEMS;
use crate::value::{Iter, Key, Rendering, Value};

pub(super) fn call(name: &str, value: Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    match name {
        "map" => Ok(Iter::lazy("generator", Box::new(move |renderer| map(&value, args, renderer)))),
        "select" => Ok(lazy_select(value, args, false, true)),
        "reject" => Ok(lazy_select(value, args, false, false)),
        "selectattr" => Ok(lazy_select(value, args, true, true)),
        "rejectattr" => Ok(lazy_select(value, args, true, false)),
        "batch" => {
            let [count, fill] = args.bind("do_batch", ["linecount", "fill_with"], 1)?;
            Ok(Iter::lazy("generator", Box::new(move |renderer| batch(&value, count, fill, renderer))))
        }
        "slice" => {
            let [count, fill] = args.bind("sync_do_slice", ["slices", "fill_with"], 1)?;
            Ok(Iter::lazy("generator", Box::new(move |renderer| slice(&value, count, fill, renderer))))
        }
        "unique" => {
            let [case_sensitive, attribute] =
                args.bind("sync_do_unique", ["case_sensitive", "attribute"], 0)?;
            let getter = Getter::new(attribute, !flag(case_sensitive.as_ref()));
            Ok(Iter::lazy("generator", Box::new(move |renderer| unique(&value, &getter?, renderer))))
        }
        "items" => {
            let [] = args.unnamed("do_items", 0)?;
            Ok(Iter::lazy(
                "generator",
                Box::new(move |renderer| match &value {
                    Value::Undefined(_) => Ok(Vec::new()),
                    Value::Dict(dict) => {
                        Value::View(crate::value::ViewKind::Items, Rc::clone(dict)).items(renderer)
                    }
                    _ => Err(Error::type_error("Can only get item pairs from a mapping.")),
                }),
            ))
        }
        "list" => {
            let [] = args.unnamed("list", 0)?;
            value.items(renderer).map(Value::list)
        }
        "first" => {
            let [] = args.unnamed("first", 0)?;
            let first = match &value {
                Value::Iter(iter) => iter.next(renderer)?,
                other => other.items(renderer)?.into_iter().next(),
            };
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        "last" => {
            let [] = args.unnamed("last", 0)?;
            check_reversible(&value)?;
            let last = value.items(renderer)?.pop();
            Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
        }
        "reverse" => reverse(&value, args, renderer),
        "join" => {
            let [separator, attribute] = args.bind("do_join", ["d", "attribute"], 0)?;
            let separator = separator.map_or_else(|| Ok(String::new()), |separator| separator.to_text())?;
            let getter = Getter::new(attribute, false)?;
            let items = value.items(renderer)?;
            let items: Vec<Value> =
                items.iter().map(|item| getter.get(item, renderer)).collect::<Result<_>>()?;
            let texts = items.iter().map(Value::to_text).collect::<Result<Vec<_>>>()?;
            Ok(Value::from(texts.join(&separator)))
        }
        "sum" => sum(&value, args, renderer),
        "min" | "max" => least_or_greatest(name, &value, args, renderer),
        "sort" => sort(&value, args, renderer),
        "dictsort" => dict_sort(&value, args),
        _ => group_by(&value, args, renderer),
    }
}

/// The sum of the items, or of an attribute of each, from a start on.
fn sum(value: &Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    let [attribute, start] = args.bind("sync_do_sum", ["attribute", "start"], 0)?;
    let getter = Getter::new(attribute, false)?;
    let mut total = start.unwrap_or(Value::Int(0));
    if matches!(total, Value::Str(_)) {
        return Err(Error::type_error("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    for item in value.items(renderer)? {
        total = ops::binary(BinaryOp::Add, &total, &getter.get(&item, renderer)?)?;
    }
    Ok(total)
}

/// Sorted by the items, or by one or several attributes of each.
fn sort(value: &Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    let names = ["reverse", "case_sensitive", "attribute"];
    let [reverse, case_sensitive, attribute] = args.bind("do_sort", names, 0)?;
    let getters = Getter::several(attribute, !flag(case_sensitive.as_ref()))?;
    let mut keyed = Vec::new();
    for item in value.items(renderer)? {
        let keys = getters.iter().map(|getter| getter.get(&item, renderer)).collect::<Result<_>>()?;
        keyed.push((Value::list(keys), item));
    }
    ops::sort_by_key(keyed, flag(reverse.as_ref())).map(Value::list)
}

/// `make_attrgetter`: an attribute, a path such as `a.b.0`, or the item itself.
struct Getter {
    path: Vec<Value>,
    default: Option<Value>,
    ignores_case: bool,
}

impl Getter {
    fn new(attribute: Option<Value>, ignores_case: bool) -> Result<Self> {
        let path = match attribute {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Str(path)) => path_of(&path.text),
            Some(other) => vec![other],
        };
        Ok(Self { path, default: None, ignores_case })
    }

    /// One for each path of `a,b`.
    fn several(attribute: Option<Value>, ignores_case: bool) -> Result<Vec<Self>> {
        match &attribute {
            Some(Value::Str(paths)) => {
                let getters = paths.text.split(',').map(|path| Self {
                    path: path_of(path),
                    default: None,
                    ignores_case,
                });
                Ok(getters.collect())
            }
            _ => Ok(vec![Self::new(attribute, ignores_case)?]),
        }
    }

    fn get(&self, item: &Value, renderer: &dyn Rendering) -> Result<Value> {
        let mut found = item.clone();
        for part in &self.path {
            found = attributes::item(&found, part, renderer)?;
            if let (Value::Undefined(_), Some(default)) = (&found, &self.default) {
                found = default.clone();
            }
        }
        Ok(match &found {
            Value::Str(text) if self.ignores_case => text.with(text.text.to_lowercase()),
            _ => found,
        })
    }
}

fn path_of(path: &str) -> Vec<Value> {
    let part = |part: &str| match part.parse() {
        Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(index),
        _ => Value::from(part),
    };
    path.split('.').map(part).collect()
}

fn filter_argument(message: &str) -> Error {
    Error::new(ErrorKind::FilterArgument, message)
}

fn map(value: &Value, mut args: Args, renderer: &dyn Rendering) -> Result<Vec<Value>> {
    if !value.is_true() {
        return Ok(Vec::new());
    }
    let has_attribute = args.named.iter().any(|(name, _)| &**name == "attribute");
    if args.positional.is_empty() && has_attribute {
        let mut take = |wanted: &str| {
            let at = args.named.iter().position(|(name, _)| **name == *wanted)?;
            Some(args.named.remove(at).1)
        };
        let (attribute, default) = (take("attribute"), take("default"));
        if let Some((name, _)) = args.named.first() {
            return Err(filter_argument(&format!("Unexpected keyword argument {}", crate::text::repr(name))));
        }
        let default = default.filter(|default| !matches!(default, Value::None));
        let getter = Getter { default, ..Getter::new(attribute, false)? };
        return value.items(renderer)?.iter().map(|item| getter.get(item, renderer)).collect();
    }
    if args.positional.is_empty() {
        return Err(filter_argument("map requires a filter argument"));
    }
    let name = args.positional.remove(0);
    let Some(name) = name.as_str() else {
        let shown = name.repr()?;
        return Err(Error::new(ErrorKind::Runtime, format!("No filter named {shown}.")));
    };
    if !crate::filter_names::exists(name) {
        return Err(Error::new(ErrorKind::Runtime, format!("No filter named '{name}'.")));
    }
    value.items(renderer)?.into_iter().map(|item| super::call(name, item, args.clone(), renderer)).collect()
}

fn lazy_select(value: Value, args: Args, by_attribute: bool, keeps_true: bool) -> Value {
    Iter::lazy(
        "generator",
        Box::new(move |renderer| select(&value, args, by_attribute, keeps_true, renderer)),
    )
}

fn select(
    value: &Value,
    mut args: Args,
    by_attribute: bool,
    keeps_true: bool,
    renderer: &dyn Rendering,
) -> Result<Vec<Value>> {
    if !value.is_true() {
        return Ok(Vec::new());
    }
    let getter = if by_attribute {
        if args.positional.is_empty() {
            return Err(filter_argument("Missing parameter for attribute name"));
        }
        Getter::new(Some(args.positional.remove(0)), false)?
    } else {
        Getter::new(None, false)?
    };
    let test = if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    if let Some(test) = &test
        && !test.as_str().is_some_and(predicates::exists)
    {
        return Err(Error::new(ErrorKind::Runtime, format!("No test named {}.", test.repr()?)));
    }
    let mut kept = Vec::new();
    for item in value.items(renderer)? {
        let found = getter.get(&item, renderer)?;
        let is_true = match test.as_ref().and_then(Value::as_str) {
            Some(name) => predicates::call(name, &found, args.clone(), renderer)?,
            None => found.is_true(),
        };
        if is_true == keeps_true {
            kept.push(item);
        }
    }
    Ok(kept)
}

fn batch(
    value: &Value,
    count: Option<Value>,
    fill: Option<Value>,
    renderer: &dyn Rendering,
) -> Result<Vec<Value>> {
    let count = count.unwrap_or(Value::None);
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let mut lines: Vec<Vec<Value>> = Vec::new();
    let mut line: Vec<Value> = Vec::new();
    for item in value.items(renderer)? {
        if ops::equal(&Value::from(line.len()), &count)? {
            lines.push(std::mem::take(&mut line));
        }
        line.push(item);
    }
    if !line.is_empty() {
        if let Some(fill) = fill {
            let wanted = usize::try_from(int(&count)?.max(0)).unwrap_or(usize::MAX);
            if wanted > MAX_MADE_ITEMS {
                return Err(Error::refused(format!("a line of {wanted} items is too long")));
            }
            while line.len() < wanted {
                line.push(fill.clone());
            }
        }
        lines.push(line);
    }
    Ok(lines.into_iter().map(Value::list).collect())
}

fn slice(
    value: &Value,
    count: Option<Value>,
    fill: Option<Value>,
    renderer: &dyn Rendering,
) -> Result<Vec<Value>> {
    let items = value.items(renderer)?;
    let count = int(&count.unwrap_or(Value::None))?;
    if count == 0 {
        return Err(Error::new(ErrorKind::ZeroDivision, "integer division or modulo by zero"));
    }
    let Ok(count) = usize::try_from(count) else { return Ok(Vec::new()) };
    if count > MAX_MADE_ITEMS {
        return Err(Error::refused(format!("{count} slices are too many")));
    }
    let (len, num_longer) = (items.len() / count, items.len() % count);
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let mut rest = items.into_iter();
    let mut slices = Vec::new();
    for number in 0..count {
        let mut part: Vec<Value> = rest.by_ref().take(len + usize::from(number < num_longer)).collect();
        if number >= num_longer {
            part.extend(fill.clone());
        }
        slices.push(Value::list(part));
    }
    Ok(slices)
}

fn unique(value: &Value, getter: &Getter, renderer: &dyn Rendering) -> Result<Vec<Value>> {
    let mut seen = std::collections::HashSet::new();
    let mut kept = Vec::new();
    for item in value.items(renderer)? {
        if seen.insert(Key::of(&getter.get(&item, renderer)?)?) {
            kept.push(item);
        }
    }
    Ok(kept)
}

fn check_reversible(value: &Value) -> Result<()> {
    if value.is_sequence() || matches!(value, Value::View(..)) {
        return Ok(());
    }
    Err(Error::type_error(format!("'{}' object is not reversible", value.type_name())))
}

fn reverse(value: &Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    let [] = args.unnamed("do_reverse", 0)?;
    if let Value::Str(text) = value {
        return Ok(text.with(text.text.chars().rev().collect::<String>()));
    }
    if !value.is_iterable() {
        return Err(filter_argument("argument must be iterable"));
    }
    let kind = match value {
        Value::List(_) => "list_reverseiterator",
        Value::Tuple(_) | Value::Group(_) => "reversed",
        Value::Dict(_) | Value::View(crate::value::ViewKind::Keys, _) => "dict_reversekeyiterator",
        Value::View(crate::value::ViewKind::Values, _) => "dict_reversevalueiterator",
        Value::View(..) => "dict_reverseitemiterator",
        Value::Range(_) => "range_iterator",
        _ => "list",
    };
    let mut items = value.items(renderer)?;
    items.reverse();
    Ok(if kind == "list" { Value::list(items) } else { Iter::of(kind, items) })
}

fn least_or_greatest(name: &str, value: &Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
    let getter = Getter::new(attribute, !flag(case_sensitive.as_ref()))?;
    let mut best: Option<(Value, Value)> = None;
    for item in value.items(renderer)? {
        let key = getter.get(&item, renderer)?;
        let is_better = match &best {
            None => true,
            Some((best_key, _)) if name == "min" => {
                ops::order(&key, best_key, "<")? == Some(std::cmp::Ordering::Less)
            }
            Some((best_key, _)) => ops::order(&key, best_key, ">")? == Some(std::cmp::Ordering::Greater),
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
}

fn dict_sort(value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, by, reverse] = args.bind("do_dictsort", ["case_sensitive", "by", "reverse"], 0)?;
    let by_value = match by.as_ref().map_or(Some("key"), Value::as_str) {
        Some("key") => false,
        Some("value") => true,
        _ => return Err(filter_argument("You can only sort by either \"key\" or \"value\"")),
    };
    let Value::Dict(dict) = value else {
        return Err(match value {
            Value::Undefined(undefined) => undefined.error(),
            other => Error::type_error(format!("'{}' object has no attribute 'items'", other.type_name())),
        });
    };
    let keyed = dict.iter().map(|(key, value)| {
        let sorted_by = if by_value { value } else { key };
        let sorted_by = match sorted_by {
            Value::Str(text) if !flag(case_sensitive.as_ref()) => text.with(text.text.to_lowercase()),
            other => other.clone(),
        };
        (sorted_by, Value::tuple(vec![key.clone(), value.clone()]))
    });
    ops::sort_by_key(keyed.collect(), flag(reverse.as_ref())).map(Value::list)
}

fn group_by(value: &Value, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    let names = ["attribute", "default", "case_sensitive"];
    let [attribute, default, case_sensitive] = args.bind("sync_do_groupby", names, 1)?;
    let default = default.filter(|default| !matches!(default, Value::None));
    let ignores_case = !flag(case_sensitive.as_ref());
    let getter = Getter { default, ..Getter::new(attribute, ignores_case)? };
    let mut keyed = Vec::new();
    for item in value.items(renderer)? {
        let key = getter.get(&item, renderer)?;
        keyed.push((key.clone(), Value::tuple(vec![key, item])));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in ops::sort_by_key(keyed, false)? {
        let Value::Tuple(pair) = pair else { continue };
        let (key, item) = (pair[0].clone(), pair[1].clone());
        match groups.last_mut() {
            Some((last, items)) if ops::equal(last, &key)? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    // The name of a group is that of its first item as it is written.
    let shown = Getter { ignores_case: false, ..getter };
    let groups = groups.into_iter().map(|(_, items)| {
        let name = items.first().map_or(Ok(Value::None), |item| shown.get(item, renderer))?;
        Ok(Value::Group(Rc::new(vec![name, Value::list(items)])))
    });
    groups.collect::<Result<_>>().map(Value::list)
}
