//! Methods of lists, tuples and dicts that change nothing.

use crate::args::{Args, int_or};
use crate::error::{Error, ErrorKind, Result};
use crate::ops;
use crate::value::{Dict, Rendering, Value, ViewKind};

/// A method of a list, a tuple or a range with these items.
pub(super) fn call_sequence(value: &Value, items: &[Value], name: &str, args: Args) -> Result<Value> {
    match name {
        "copy" => {
            let [] = args.unnamed(name, 0)?;
            Ok(value.clone())
        }
        "count" => {
            let [wanted] = args.unnamed(name, 1)?;
            let wanted = wanted.unwrap_or(Value::None);
            let mut count = 0_usize;
            for item in items {
                count += usize::from(ops::equal(item, &wanted)?);
            }
            Ok(Value::from(count))
        }
        _ => {
            if matches!(value, Value::Range(_)) && args.positional.len() > 1 {
                let given = args.positional.len();
                return Err(Error::type_error(format!(
                    "range.index() takes exactly one argument ({given} given)"
                )));
            }
            let [wanted, start, stop] = args.unnamed(name, 1)?;
            let wanted = wanted.unwrap_or(Value::None);
            let len = items.len() as i128;
            let clamp =
                |at: i128| usize::try_from((if at < 0 { at + len } else { at }).clamp(0, len)).unwrap_or(0);
            let start = clamp(int_or(start.as_ref(), 0)?);
            let stop = clamp(int_or(stop.as_ref(), len)?);
            for (at, item) in items.iter().enumerate().take(stop).skip(start) {
                if ops::equal(item, &wanted)? {
                    return Ok(Value::from(at));
                }
            }
            Err(Error::value_error(match value {
                Value::List(_) => format!("{} is not in list", wanted.repr()?),
                Value::Range(_) => format!("{} is not in range", wanted.repr()?),
                _ => "tuple.index(x): x not in tuple".to_owned(),
            }))
        }
    }
}

/// A method of a dict, or of `dict` itself.
pub(super) fn call_dict(value: &Value, name: &str, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    if name == "fromkeys" {
        let [keys, default] = args.unnamed(name, 1)?;
        let default = default.unwrap_or(Value::None);
        let mut dict = Dict::default();
        for key in keys.unwrap_or(Value::None).items(renderer)? {
            dict.insert(key, default.clone())?;
        }
        return Ok(Value::dict(dict));
    }
    let Value::Dict(dict) = value else { return Err(super::unsupported(value, name)) };
    if name == "get" {
        let [key, default] = args.unnamed(name, 1)?;
        let found = dict.get(&key.unwrap_or(Value::None))?.cloned();
        return Ok(found.or(default).unwrap_or(Value::None));
    }
    let [] = args.unnamed(name, 0)?;
    Ok(match name {
        "copy" => value.clone(),
        "keys" => Value::View(ViewKind::Keys, dict.clone()),
        "values" => Value::View(ViewKind::Values, dict.clone()),
        _ => Value::View(ViewKind::Items, dict.clone()),
    })
}

/// `dict(pairs, **named)`.
pub(crate) fn make_dict(args: Args, renderer: &dyn Rendering) -> Result<Value> {
    if args.positional.len() > 1 {
        let given = args.positional.len();
        return Err(Error::type_error(format!("dict expected at most 1 argument, got {given}")));
    }
    let mut dict = Dict::default();
    match args.positional.first() {
        None => {}
        Some(Value::Dict(from)) => dict = (**from).clone(),
        Some(other) => {
            for (at, pair) in other.items(renderer)?.into_iter().enumerate() {
                if !pair.is_iterable() {
                    let message =
                        format!("cannot convert dictionary update sequence element #{at} to a sequence");
                    return Err(Error::type_error(message));
                }
                let pair = pair.items(renderer)?;
                let len = pair.len();
                let Ok([key, value]) = <[Value; 2]>::try_from(pair) else {
                    return Err(Error::new(
                        ErrorKind::Value,
                        format!("dictionary update sequence element #{at} has length {len}; 2 is required"),
                    ));
                };
                dict.insert(key, value)?;
            }
        }
    }
    for (name, value) in args.named {
        dict.insert_str(&name, value);
    }
    Ok(Value::dict(dict))
}
