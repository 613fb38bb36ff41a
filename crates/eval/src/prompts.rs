//! A task's rows as items: fields, shots, and the strings that the model is given.

use std::path::Path;

use minijinja::value::Serde;
use minijinja::{Environment, Expression, Value as Jinja, context};
use serde_json::Value as Json;

use crate::data::Value;
use crate::random::PythonRandom;
use crate::task::{Kind, ShotOrder, Task};
use crate::template::environment;
use crate::{Ask, Error, Item, Result};

/// How a task is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Asking {
    /// Shots, in place of the task's own number.
    pub shots: Option<usize>,
    /// At most so many questions, the first ones.
    pub limit: Option<usize>,
    /// Texts a question, in place of the task's own number.
    pub samples: Option<usize>,
    /// Of generations, in place of the task's own.
    pub temperature: Option<f64>,
    /// Of the choice of shots.
    pub seed: u64,
}

impl Default for Asking {
    fn default() -> Self {
        Self { shots: None, limit: None, samples: None, temperature: None, seed: 1234 }
    }
}

/// The items of a task from the rows of its evaluated split; shots come from `pool`.
///
/// # Errors
/// [`Error::BadFile`] for a row that lacks what the task's templates name, with the row; [`Error::BadValue`] for more shots than the
/// pool has.
pub fn items(task: &Task, rows: Vec<Value>, pool: Vec<Value>, asking: &Asking) -> Result<Vec<Item>> {
    let env = environment().map_err(|e| wrong(task, "templates", &e.to_string()))?;
    let prompts = Prompts::new(task, &env, rows.len())?;
    let shots = asking.shots.unwrap_or(task.shots);
    let mut questions: Vec<(Question, Option<usize>)> = Vec::new();
    for (at, row) in rows.into_iter().enumerate() {
        if asking.limit.is_some_and(|limit| questions.len() >= limit) {
            break;
        }
        prompts.questions(row, at, &mut questions)?;
    }
    questions.truncate(asking.limit.unwrap_or(usize::MAX));
    let pool = if shots == 0 {
        Vec::new()
    } else if task.samples.is_empty() {
        let mut docs = Vec::new();
        pool.into_iter().enumerate().try_for_each(|(at, row)| prompts.questions(row, at, &mut docs))?;
        docs
    } else {
        let mut docs = Vec::new();
        task.samples.iter().enumerate().try_for_each(|(at, row)| prompts.questions(row.clone(), at, &mut docs))?;
        docs
    };
    let pool: Vec<Question> = pool.into_iter().map(|(question, _)| question).collect();
    let mut drawn = Shots {
        pool: &pool,
        n: shots,
        order: task.shot_order,
        exclude: task.exclude_question,
        random: PythonRandom::new(asking.seed),
    };
    let mut shown: Vec<Option<String>> = vec![None; pool.len()];
    let mut items = Vec::new();
    for (doc_id, (question, row)) in questions.into_iter().enumerate() {
        let mut before = prompts.render("description", &prompts.description, &question)?;
        for at in drawn.next(task, &question)? {
            if shown[at].is_none() {
                shown[at] = Some(prompts.shot(&pool[at])?);
            }
            before += shown[at].as_deref().unwrap_or_default();
        }
        items.push(prompts.item(doc_id, row, question, &before, asking)?);
    }
    Ok(items)
}

/// The program that a text makes.
pub(crate) fn program(task: &Task, template: &str, item: &Item, text: &str) -> Result<String> {
    let env = environment().map_err(|e| wrong(task, "templates", &e.to_string()))?;
    let all = context! { completion => text, ..jinja(&item.doc) };
    env.render_str(template, all).map_err(|e| wrong(task, "program", &format!("question {}: {e:#}", item.doc_id)))
}

/// A row with its fields, as Jinja sees it.
struct Question {
    doc: Value,
    jinja: Jinja,
    /// For errors: the row in its file, from 1.
    row: usize,
}

/// Draws the shots of each question.
struct Shots<'a> {
    pool: &'a [Question],
    n: usize,
    order: ShotOrder,
    exclude: bool,
    random: PythonRandom,
}

impl Shots<'_> {
    fn next(&mut self, task: &Task, question: &Question) -> Result<Vec<usize>> {
        if self.n == 0 {
            return Ok(Vec::new());
        }
        let pool = self.pool;
        let few = |asked: usize, there: usize| {
            let problem = format!("{}: {asked} are drawn for {} shots, and the pool has {there}", task.name, self.n);
            Error::bad_value("--shots", problem, "ask for fewer, or give the file of shots (train, dev) beside the evaluated one")
        };
        let other = |at: &usize| !self.exclude || pool[*at].doc != question.doc;
        if self.order == ShotOrder::First {
            let first: Vec<usize> = (0..pool.len()).filter(other).take(self.n).collect();
            return if first.len() < self.n { Err(few(self.n, first.len())) } else { Ok(first) };
        }
        let draw = self.n + usize::from(self.exclude);
        let drawn = self.random.sample(pool.len(), draw).ok_or_else(|| few(draw, pool.len()))?;
        let mut kept: Vec<usize> = drawn.into_iter().filter(other).take(self.n).collect();
        if kept.len() < self.n {
            // The question stands in the pool more than once.
            let others: Vec<usize> = (0..pool.len()).filter(other).collect();
            let drawn = self.random.sample(others.len(), self.n).ok_or_else(|| few(self.n, others.len()))?;
            kept = drawn.into_iter().map(|at| others[at]).collect();
        }
        Ok(kept)
    }
}

/// The compiled templates of a task.
struct Prompts<'a> {
    task: &'a Task,
    env: &'a Environment<'static>,
    fields: Vec<(String, bool, Expression<'a, 'a>)>,
    only: Option<Expression<'a, 'a>>,
    each: Option<Expression<'a, 'a>>,
    passage: Option<Expression<'a, 'a>>,
    categories: Option<Expression<'a, 'a>>,
    description: String,
    shot: Option<Expression<'a, 'a>>,
    choices: Option<Expression<'a, 'a>>,
    gold: Option<Expression<'a, 'a>>,
    ending: Option<Expression<'a, 'a>>,
    labels: Option<Expression<'a, 'a>>,
    text: Option<Expression<'a, 'a>>,
    counted: Option<Expression<'a, 'a>>,
    answers: Option<Expression<'a, 'a>>,
    /// Rows of the evaluated split, for `where`.
    total: usize,
}

impl<'a> Prompts<'a> {
    fn new(task: &'a Task, env: &'a Environment<'static>, total: usize) -> Result<Self> {
        let expression =
            |name: &str, source: &'a str| env.compile_expression(source).map_err(|e| wrong(task, name, &format!("{e:#}")));
        let maybe = |name: &str, source: &'a Option<String>| source.as_deref().map(|source| expression(name, source)).transpose();
        let fields = task.row.iter().map(|field| Ok((field.set.clone(), field.always, expression(&field.set, &field.to)?)));
        Ok(Self {
            task,
            env,
            fields: fields.collect::<Result<_>>()?,
            only: maybe("where", &task.only)?,
            each: maybe("each", &task.each)?,
            passage: maybe("passage", &task.passage)?,
            categories: maybe("categories", &task.categories)?,
            description: task.description.clone(),
            shot: maybe("shot", &task.shot)?,
            choices: maybe("choices", &task.choices)?,
            gold: maybe("gold", &task.gold)?,
            ending: maybe("ending", &task.ending)?,
            labels: maybe("labels", &task.labels)?,
            text: maybe("text", &task.text)?,
            counted: maybe("counted", &task.counted)?,
            answers: maybe("answers", &task.answers)?,
            total,
        })
    }

    /// The questions of a row, each with the row's number where it has several.
    fn questions(&self, row: Value, at: usize, into: &mut Vec<(Question, Option<usize>)>) -> Result<()> {
        let Value::Object(mut doc) = row else {
            let problem = format!("row {}: expected an object, got {}", at + 1, row.kind());
            return Err(Error::bad_file(
                "file of the task",
                &self.task.name,
                problem,
                "take the file that its authors published",
            ));
        };
        for (name, always, expression) in &self.fields {
            if *always || !doc.contains_key(name) {
                let question = Question { jinja: jinja(&doc), doc: Value::Null, row: at + 1 };
                let value = self.value(name, expression, &question)?;
                doc.insert(name.clone(), from_jinja(&value));
            }
        }
        let doc = Value::Object(doc);
        let question = Question { jinja: jinja(&doc), doc, row: at + 1 };
        if let Some(only) = &self.only
            && !self.kept(only, &question)?
        {
            return Ok(());
        }
        let Some(each) = &self.each else {
            into.push((question, None));
            return Ok(());
        };
        let count = self.value("each", each, &question)?.as_usize().unwrap_or(0);
        for index in 0..count {
            let Value::Object(mut doc) = question.doc.clone() else { break };
            doc.insert("index".into(), Value::from(index as u64));
            let doc = Value::Object(doc);
            into.push((Question { jinja: jinja(&doc), doc, row: at + 1 }, Some(at)));
        }
        Ok(())
    }

    fn value(&self, name: &str, expression: &Expression<'_, '_>, question: &Question) -> Result<Jinja> {
        let value = expression.eval(&question.jinja).map_err(|e| self.failed(name, question, &format!("{e:#}")))?;
        if value.is_undefined() { Err(self.failed(name, question, "it is undefined")) } else { Ok(value) }
    }

    fn kept(&self, only: &Expression<'_, '_>, question: &Question) -> Result<bool> {
        let all = context! { total => self.total, ..question.jinja.clone() };
        Ok(only.eval(all).map_err(|e| self.failed("where", question, &format!("{e:#}")))?.is_true())
    }

    fn failed(&self, name: &str, question: &Question, problem: &str) -> Error {
        wrong(self.task, name, &format!("row {}: {problem}", question.row))
    }

    fn render(&self, name: &str, template: &str, question: &Question) -> Result<String> {
        if !template.contains('{') {
            return Ok(template.into());
        }
        self.env.render_str(template, &question.jinja).map_err(|e| self.failed(name, question, &format!("{e:#}")))
    }

    fn text(&self, name: &str, expression: &Expression<'_, '_>, question: &Question) -> Result<String> {
        Ok(text(&self.value(name, expression, question)?))
    }

    fn list(&self, name: &str, expression: &Expression<'_, '_>, question: &Question) -> Result<Vec<Jinja>> {
        let value = self.value(name, expression, question)?;
        let items = value.try_iter().map_err(|_| self.failed(name, question, &format!("expected a list, got {value}")))?;
        Ok(items.collect())
    }

    fn choices(&self, question: &Question) -> Result<Vec<String>> {
        let Some(choices) = &self.choices else { return Ok(Vec::new()) };
        Ok(self.list("choices", choices, question)?.iter().map(text).collect())
    }

    /// Indexes of the right choices.
    fn gold(&self, question: &Question, choices: usize) -> Result<Vec<usize>> {
        let Some(gold) = &self.gold else { return Ok(Vec::new()) };
        let value = self.value("gold", gold, question)?;
        let of = |value: &Jinja| match value.as_usize().filter(|at| *at < choices) {
            Some(at) => Ok(at),
            None => Err(self.failed("gold", question, &format!("expected the index of one of {choices} choices, got {value}"))),
        };
        match value.try_iter() {
            Ok(items) if value.as_str().is_none() => items.map(|item| of(&item)).collect(),
            _ => Ok(vec![of(&value)?]),
        }
    }

    fn answers(&self, question: &Question) -> Result<Vec<String>> {
        let Some(answers) = &self.answers else { return Ok(Vec::new()) };
        let value = self.value("answers", answers, question)?;
        Ok(match value.try_iter() {
            Ok(items) if value.as_str().is_none() => items.map(|item| text(&item)).collect(),
            _ => vec![text(&value)],
        })
    }

    /// Question, answer and what stands around them.
    fn shot(&self, question: &Question) -> Result<String> {
        let task = self.task;
        let mut asked = self.render("prompt", &task.prompt, question)?;
        let mut shown = self.shot.as_ref().map(|shot| self.text("shot", shot, question)).transpose()?;
        match task.kind {
            Kind::Choices => {
                let choices = self.choices(question)?;
                let right = self.gold(question, choices.len())?.first().map(|at| choices[*at].clone()).unwrap_or_default();
                match &self.ending {
                    Some(ending) => {
                        asked += &right;
                        shown.get_or_insert(self.text("ending", ending, question)?);
                    }
                    None => {
                        shown.get_or_insert(right);
                    }
                }
            }
            Kind::Continuation | Kind::Text => {
                if let (None, Some(text)) = (&shown, &self.text) {
                    shown = Some(self.text("text", text, question)?);
                }
            }
            Kind::Generate => {
                if shown.is_none() {
                    shown = self.answers(question)?.into_iter().next();
                }
            }
        }
        let shown = shown.unwrap_or_default();
        Ok(if shown.is_empty() { asked } else { asked + &task.delimiter + &shown + &task.shot_delimiter })
    }

    fn item(&self, doc_id: usize, row: Option<usize>, question: Question, before: &str, asking: &Asking) -> Result<Item> {
        let task = self.task;
        let asked = self.render("prompt", &task.prompt, &question)?;
        let choices = self.choices(&question)?;
        let mut target = Json::Null;
        let mut counted = (0, 0);
        let context = format!("{before}{asked}");
        let ask = match task.kind {
            Kind::Choices => {
                let gold = self.gold(&question, choices.len())?;
                target = if let [one] = gold[..] { one.into() } else { gold.into() };
                Ask::Pairs(match &self.ending {
                    Some(ending) => {
                        let ending = format!("{}{}", task.delimiter, self.text("ending", ending, &question)?);
                        choices.iter().map(|choice| (format!("{context}{choice}"), ending.clone())).collect()
                    }
                    None => {
                        let mut pairs: Vec<_> =
                            choices.iter().map(|choice| (context.clone(), format!("{}{choice}", task.delimiter))).collect();
                        if task.metrics.iter().any(|metric| metric == "acc_norm_answer") {
                            pairs.extend(choices.iter().map(|choice| (task.bare.clone(), format!("{}{choice}", task.delimiter))));
                        }
                        pairs
                    }
                })
            }
            Kind::Continuation | Kind::Text => {
                let scored = match &self.text {
                    Some(text) => self.text("text", text, &question)?,
                    None => String::new(),
                };
                if task.kind == Kind::Text {
                    let page = self.counted.as_ref().map(|counted| self.text("counted", counted, &question)).transpose()?;
                    counted = count(page.as_deref().unwrap_or(&scored));
                    Ask::Rolling(scored)
                } else {
                    target = scored.clone().into();
                    Ask::Pairs(vec![(context, scored)])
                }
            }
            Kind::Generate => {
                let answers = self.answers(&question)?;
                target = if let [one] = &answers[..] { one.clone().into() } else { answers.into() };
                Ask::Generate {
                    context,
                    until: task.until.clone(),
                    max_new: task.max_new,
                    samples: asking.samples.unwrap_or(task.samples_each),
                    temperature: asking.temperature.unwrap_or(task.temperature),
                    top_p: task.top_p,
                }
            }
        };
        let labels = match &self.labels {
            Some(labels) => self.list("labels", labels, &question)?.iter().map(Jinja::is_true).collect(),
            None => Vec::new(),
        };
        let categories = match &self.categories {
            Some(categories) => self.list("categories", categories, &question)?.iter().map(text).collect(),
            None => Vec::new(),
        };
        let group = match &self.passage {
            Some(passage) => Some(self.text("passage", passage, &question)?),
            None => row.map(|row| format!("row {}", row + 1)),
        };
        Ok(Item { doc_id, doc: question.doc, ask, choices, target, labels, counted, group, categories })
    }
}

/// Pieces between white space, empty ends too, as Python's `re.split(r"\s+", text)`; bytes.
fn count(text: &str) -> (usize, usize) {
    let mut words = 1;
    let mut in_space = false;
    for c in text.chars() {
        words += usize::from(c.is_whitespace() && !in_space);
        in_space = c.is_whitespace();
    }
    (words, text.len())
}

fn text(value: &Jinja) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn jinja(doc: &impl serde::Serialize) -> Jinja {
    Jinja::from(Serde(doc))
}

fn from_jinja(value: &Jinja) -> Value {
    serde_json::to_value(value).map_or(Value::Null, Value::from)
}

fn wrong(task: &Task, name: &str, problem: &str) -> Error {
    let hint = "take the file that the task's authors published (`recua eval list` says which), or correct the task's file";
    Error::bad_file("task", Path::new(&task.name), format!("{name}: {problem}"), hint)
}
