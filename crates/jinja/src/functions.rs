//! The functions that every template has: Jinja's own and those of transformers.

use std::cell::RefCell;
use std::rc::Rc;

use crate::args::{Args, int, string};
use crate::error::{Error, ErrorKind, Result};
use crate::methods;
use crate::value::{Cycler, Range, Rendering, Str, Value, set_attribute};

/// The sandbox's limit for `range`.
const MAX_RANGE: usize = 100_000;

/// `self` is no function, but it is there, too: the template's own blocks.
const NAMES: [&str; 9] =
    ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now", "self"];

/// A function by its name.
pub(crate) fn global(name: &str) -> Option<Value> {
    NAMES.into_iter().find(|known| *known == name).map(Value::Function)
}

/// Calls a function of the environment.
///
/// # Errors
/// As the function's in Python.
pub(crate) fn call(name: &str, args: Args, renderer: &dyn Rendering) -> Result<Value> {
    match name {
        "range" => range(args),
        "dict" => methods::make_dict(args, renderer),
        "namespace" => namespace(args, renderer),
        "cycler" => {
            if args.positional.is_empty() {
                return Err(Error::new(ErrorKind::Runtime, "at least one item has to be provided"));
            }
            Ok(Value::Cycler(Rc::new(Cycler { items: args.positional, position: RefCell::new(0) })))
        }
        "joiner" => {
            let [separator] = args.bind(name, ["sep"], 0)?;
            let separator = match separator {
                None => Str { text: ", ".into(), is_markup: false },
                Some(Value::Str(separator)) => separator,
                Some(_) => {
                    return Err(Error::refused("`joiner` with anything but a string is not supported"));
                }
            };
            Ok(Value::Joiner(Rc::new((separator, RefCell::new(false)))))
        }
        "raise_exception" => {
            let [message] = args.bind(name, ["message"], 1)?;
            Err(Error::new(ErrorKind::Raised, message.unwrap_or(Value::None).to_text()?))
        }
        "strftime_now" => {
            let [format] = args.bind(name, ["format"], 1)?;
            let format = format.unwrap_or(Value::None);
            let Some(date) = renderer.date() else {
                return Err(Error::new(
                    ErrorKind::NoDate,
                    "`strftime_now` asks for the date, and none is given",
                ));
            };
            date.format(string(&format)?).map(Value::from)
        }
        _ => Err(Error::refused(format!(
            "the function `{name}` gives another text each time and is not supported"
        ))),
    }
}

fn range(args: Args) -> Result<Value> {
    let [first, second, step] = args.unnamed("range", 1)?;
    let first = int(&first.unwrap_or(Value::None))?;
    let (start, stop) = match second {
        Some(stop) => (first, int(&stop)?),
        None => (0, first),
    };
    let step = step.as_ref().map_or(Ok(1), int)?;
    if step == 0 {
        return Err(Error::value_error("range() arg 3 must not be zero"));
    }
    let limit = 1_i128 << 100;
    if [start, stop, step].iter().any(|bound| bound.abs() > limit) {
        return Err(crate::number::too_large());
    }
    let range = Range { start, stop, step };
    if range.len() > MAX_RANGE {
        return Err(Error::new(
            ErrorKind::Overflow,
            format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."),
        ));
    }
    Ok(Value::Range(range))
}

fn namespace(args: Args, renderer: &dyn Rendering) -> Result<Value> {
    let Value::Dict(dict) = methods::make_dict(args, renderer)? else { return Ok(Value::None) };
    let mut attributes = Vec::new();
    for (key, value) in dict.iter() {
        let name = string(key)?;
        set_attribute(&mut attributes, &name.into(), value.clone())?;
    }
    Ok(Value::Namespace(Rc::new(RefCell::new(attributes))))
}
