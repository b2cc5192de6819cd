//! Modules, entries, declarations and operands.

use std::collections::{HashMap, HashSet};

use crate::decode::{self, Operand};
use crate::error::ParseError;
use crate::inst::{Address, Guard, Inst, Op, Reg, Space, Value};
use crate::lex::{Tok, Token, tokens};
use crate::module::{Entry, Global, Module, Param, Symbol};
use crate::types::Type;

/// Bounds on what a text may declare, so that no text exhausts memory.
const MAX_REGISTERS: usize = 1 << 16;
const MAX_VARIABLE: usize = 1 << 28;
const MAX_BLOCK_MEMORY: usize = 1 << 20;

pub(crate) fn module(text: &str) -> Result<Module, ParseError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { text, tokens: &tokens, at: 0 };
    let mut out = Module { entries: vec![], globals: vec![], lines: text.lines().map(str::to_string).collect() };
    let mut shared = Vec::new();
    let mut linkage = false;
    while let Some(token) = parser.peek() {
        parser.at += 1;
        match token.tok {
            Tok::Word(".version" | ".target" | ".address_size" | ".file") => parser.skip_line(token.line),
            Tok::Word(".section") => parser.skip_braces()?,
            Tok::Word(".visible" | ".weak" | ".extern" | ".common") => {
                linkage = token.tok == Tok::Word(".extern");
                continue;
            }
            Tok::Word(".global" | ".const") => {
                let constant = token.tok == Tok::Word(".const");
                let variable = parser.variable()?;
                out.globals.push(Global { name: variable.name.into(), data: variable.data, constant });
            }
            Tok::Word(".shared") => {
                let variable = parser.variable()?;
                shared.push((variable, linkage));
            }
            Tok::Word(".entry") => {
                let entry = parser.entry(&out, &shared)?;
                out.entries.push(entry);
            }
            Tok::Sign(';') => {}
            _ => return Err(parser.error(token.line, "a directive that is not supported")),
        }
        linkage = false;
    }
    Ok(out)
}

/// A declared variable.
struct Variable<'a> {
    name: &'a str,
    align: usize,
    data: Vec<u8>,
}

struct Parser<'t, 'a> {
    text: &'a str,
    tokens: &'t [Token<'a>],
    at: usize,
}

impl<'a> Parser<'_, 'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn line(&self) -> u32 {
        self.peek().or(self.tokens.last().copied()).map_or(1, |token| token.line)
    }

    fn error(&self, line: u32, message: impl Into<String>) -> ParseError {
        ParseError::at(self.text, line, message)
    }

    fn next(&mut self) -> Result<Token<'a>, ParseError> {
        let token = self.peek().ok_or_else(|| self.error(self.line(), "the text ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    fn eat(&mut self, tok: Tok<'_>) -> bool {
        let found = self.peek().is_some_and(|token| token.tok == tok);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: char) -> Result<(), ParseError> {
        let line = self.line();
        if self.eat(Tok::Sign(sign)) { Ok(()) } else { Err(self.error(line, format!("expected `{sign}`"))) }
    }

    fn word(&mut self) -> Result<&'a str, ParseError> {
        match self.next()? {
            Token { tok: Tok::Word(word), .. } => Ok(word),
            token => Err(self.error(token.line, "expected a name")),
        }
    }

    fn size(&mut self) -> Result<usize, ParseError> {
        match self.next()? {
            Token { tok: Tok::Int(value), .. } if value <= MAX_VARIABLE as u64 => Ok(value as usize),
            token => Err(self.error(token.line, "expected a size within bounds")),
        }
    }

    fn skip_line(&mut self, line: u32) {
        while self.peek().is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<(), ParseError> {
        let mut depth = 0;
        loop {
            match self.next()?.tok {
                Tok::Sign('{') => depth += 1,
                Tok::Sign('}') if depth <= 1 => return Ok(()),
                Tok::Sign('}') => depth -= 1,
                _ => {}
            }
        }
    }

    /// Alignment, type, name, dimensions; stops before an initialiser, `,`, `)` or `;`.
    fn declarator(&mut self) -> Result<(&'a str, Type, usize, usize), ParseError> {
        let line = self.line();
        let (mut ty, mut align, mut vector) = (None, None, 1);
        let name = loop {
            match self.word()? {
                ".align" => align = Some(self.size()?),
                ".ptr" => {}
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".global" | ".shared" | ".const" | ".local" | ".managed" => {}
                word => match word.strip_prefix('.') {
                    Some(name) => ty = Some(Type::parse(name).ok_or_else(|| self.error(line, "unknown type"))?),
                    None => break word,
                },
            }
        };
        let ty = ty.ok_or_else(|| self.error(line, "a variable without a type"))?;
        let mut count = vector;
        while self.eat(Tok::Sign('[')) {
            if self.eat(Tok::Sign(']')) {
                count = 0;
                continue;
            }
            count *= self.size()?;
            self.expect(']')?;
            if count > MAX_VARIABLE {
                return Err(self.error(line, "a variable that is too large"));
            }
        }
        let align = align.unwrap_or(ty.bytes() * vector);
        if !align.is_power_of_two() {
            return Err(self.error(line, "an alignment that is no power of two"));
        }
        Ok((name, ty, align, count))
    }

    fn variable(&mut self) -> Result<Variable<'a>, ParseError> {
        let line = self.line();
        let (name, ty, align, count) = self.declarator()?;
        let bytes = count * ty.bytes();
        if bytes > MAX_VARIABLE {
            return Err(self.error(line, "a variable that is too large"));
        }
        let mut data = Vec::new();
        if self.eat(Tok::Sign('=')) {
            while !matches!(self.peek().map(|token| token.tok), Some(Tok::Sign(';')) | None) {
                if self.eat(Tok::Sign('{')) || self.eat(Tok::Sign('}')) || self.eat(Tok::Sign(',')) {
                    continue;
                }
                let value = self.literal()?.bits(ty);
                data.extend_from_slice(&value.to_le_bytes()[..ty.bytes()]);
            }
        }
        self.expect(';')?;
        if data.len() > bytes && count != 0 {
            return Err(self.error(line, "more initial values than elements"));
        }
        data.resize(bytes.max(data.len()), 0);
        Ok(Variable { name, align, data })
    }

    fn literal(&mut self) -> Result<Literal, ParseError> {
        let negative = self.eat(Tok::Sign('-'));
        match self.next()? {
            Token { tok: Tok::Int(value), .. } => Ok(Literal::Int(if negative { value.wrapping_neg() } else { value })),
            Token { tok: Tok::Float(value), .. } => Ok(Literal::Float(if negative { -value } else { value })),
            token => Err(self.error(token.line, "expected a number")),
        }
    }

    fn entry(&mut self, module: &Module, shared: &[(Variable<'_>, bool)]) -> Result<Entry, ParseError> {
        let mut body = Body::new(self.word()?.to_string());
        for (index, global) in module.globals.iter().enumerate() {
            body.symbol(&global.name, Symbol::Global(index));
        }
        // a variable of the module takes memory of the entries that name it
        let named = self.words_ahead();
        for (variable, external) in shared.iter().filter(|(variable, _)| named.contains(variable.name)) {
            body.shared(variable, *external);
        }
        if self.eat(Tok::Sign('(')) {
            while !self.eat(Tok::Sign(')')) {
                let line = self.line();
                if self.word()? != ".param" {
                    return Err(self.error(line, "expected `.param`"));
                }
                let (name, ty, align, count) = self.declarator()?;
                let offset = body.entry.param_bytes.next_multiple_of(align.max(1));
                let bytes = ty.bytes() * count;
                body.entry.param_bytes = offset + bytes;
                if body.entry.param_bytes > MAX_BLOCK_MEMORY {
                    return Err(self.error(line, "too many parameter bytes"));
                }
                body.symbol(name, Symbol::Offset(Space::Param, offset as u64));
                body.entry.params.push(Param { name: name.into(), offset, bytes });
                self.eat(Tok::Sign(','));
            }
        }
        loop {
            match self.next()? {
                Token { tok: Tok::Sign('{'), .. } => break,
                Token { tok: Tok::Word(".maxntid" | ".reqntid"), .. } => {
                    let mut threads = self.size()?;
                    while self.eat(Tok::Sign(',')) {
                        threads = threads.saturating_mul(self.size()?);
                    }
                    body.entry.max_threads = Some(u32::try_from(threads).unwrap_or(u32::MAX));
                }
                Token { tok: Tok::Word(".minnctapersm" | ".maxnreg"), .. } => drop(self.size()?),
                token => return Err(self.error(token.line, "a directive that is not supported")),
            }
        }
        self.body(&mut body)?;
        let Body { mut entry, branches, labels, scopes, .. } = body;
        for (at, scope, label, line) in branches {
            let mut scope = Some(scope);
            let target = loop {
                let Some(id) = scope else {
                    return Err(self.error(line, format!("no label `{label}`")));
                };
                if let Some(&target) = labels.get(&(id, label)) {
                    break target;
                }
                scope = scopes[id].0;
            };
            if let Op::Bra { target: slot } = &mut entry.insts[at].op {
                *slot = target;
            }
        }
        let line = self.line();
        entry.insts.push(Inst { line, source: None, guard: None, op: Op::Exit });
        if entry.shared_bytes > MAX_BLOCK_MEMORY || entry.local_bytes > MAX_BLOCK_MEMORY {
            return Err(self.error(line, "more shared or local memory than a block can have"));
        }
        Ok(entry)
    }

    /// The words from here to the end of the braces that open next.
    fn words_ahead(&self) -> HashSet<&'a str> {
        let (mut words, mut depth) = (HashSet::new(), 0);
        for token in &self.tokens[self.at..] {
            match token.tok {
                Tok::Word(word) => drop(words.insert(word)),
                Tok::Sign('{') => depth += 1,
                Tok::Sign('}') if depth <= 1 => break,
                Tok::Sign('}') => depth -= 1,
                _ => {}
            }
        }
        words
    }

    fn body(&mut self, body: &mut Body<'a>) -> Result<(), ParseError> {
        let mut source = None;
        loop {
            let token = self.next()?;
            let line = token.line;
            match token.tok {
                Tok::Sign('{') => body.open(),
                Tok::Sign('}') => match body.scopes[body.scope].0 {
                    Some(parent) => body.scope = parent,
                    None => return Ok(()),
                },
                Tok::Sign(';') => {}
                Tok::Word(".loc") => {
                    if let (Some(Tok::Int(file)), Some(Tok::Int(at))) = (self.tok(0), self.tok(1)) {
                        source = Some((file as u32, at as u32));
                    }
                    self.skip_line(line);
                }
                Tok::Word(".file") => self.skip_line(line),
                Tok::Word(".pragma") => self.skip_line(line),
                Tok::Word(".reg") => self.registers(body)?,
                Tok::Word(".shared") => {
                    let variable = self.variable()?;
                    body.shared(&variable, false);
                }
                Tok::Word(".local") => {
                    let variable = self.variable()?;
                    let offset = body.entry.local_bytes.next_multiple_of(variable.align);
                    body.entry.local_bytes = offset.saturating_add(variable.data.len());
                    body.symbol(variable.name, Symbol::Offset(Space::Local, offset as u64));
                }
                Tok::Word(name) if self.eat(Tok::Sign(':')) => {
                    if body.labels.insert((body.scope, name), body.entry.insts.len()).is_some() {
                        return Err(self.error(line, "a label that stands twice"));
                    }
                }
                Tok::Word(word) if word.starts_with('.') => {
                    return Err(self.error(line, "a directive that is not supported"));
                }
                Tok::Word(_) | Tok::Sign('@') => {
                    self.at -= 1;
                    let inst = self.instruction(body, source)?;
                    body.entry.insts.push(inst);
                }
                _ => return Err(self.error(line, "expected an instruction")),
            }
        }
    }

    fn tok(&self, ahead: usize) -> Option<Tok<'a>> {
        self.tokens.get(self.at + ahead).map(|token| token.tok)
    }

    /// `.reg .type %name<count>, %name …;`
    fn registers(&mut self, body: &mut Body<'a>) -> Result<(), ParseError> {
        let line = self.line();
        let ty = self.word()?.strip_prefix('.').and_then(Type::parse);
        let ty = ty.ok_or_else(|| self.error(line, "a register type that is not supported"))?;
        loop {
            let name = self.word()?;
            if self.eat(Tok::Sign('<')) {
                let count = self.size()?;
                self.expect('>')?;
                if body.entry.regs.len() + count > MAX_REGISTERS {
                    return Err(self.error(line, "too many registers"));
                }
                for index in 0..count {
                    body.register(format!("{name}{index}"), ty);
                }
            } else {
                body.register(name.to_string(), ty);
            }
            if body.entry.regs.len() > MAX_REGISTERS {
                return Err(self.error(line, "too many registers"));
            }
            if !self.eat(Tok::Sign(',')) {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, body: &mut Body<'a>, source: Option<(u32, u32)>) -> Result<Inst, ParseError> {
        let line = self.line();
        let mut guard = None;
        if self.eat(Tok::Sign('@')) {
            let negated = self.eat(Tok::Sign('!'));
            let name = self.word()?;
            match body.lookup(name) {
                Some(reg) if body.entry.regs[reg as usize] == Type::Pred => guard = Some(Guard { reg, negated }),
                _ => return Err(self.error(line, "a guard that is no predicate register")),
            }
        }
        let opcode = self.word()?;
        let mut operands = Vec::new();
        while !self.eat(Tok::Sign(';')) {
            let operand = self.operand(body)?;
            operands.push(operand);
            if !self.eat(Tok::Sign(',')) {
                self.expect(';')?;
                break;
            }
        }
        if opcode.split('.').next() == Some("bra") {
            let Some(Operand::Name(label)) = operands.first() else {
                return Err(self.error(line, "a branch without a label"));
            };
            body.branches.push((body.entry.insts.len(), body.scope, label, line));
        }
        let op = decode::instruction(opcode, &operands).map_err(|message| self.error(line, message))?;
        Ok(Inst { line, source, guard, op })
    }

    fn operand(&mut self, body: &Body<'a>) -> Result<Operand<'a>, ParseError> {
        let token = self.next()?;
        let operand = match token.tok {
            Tok::Sign('{') => {
                let mut parts = Vec::new();
                while !self.eat(Tok::Sign('}')) {
                    let part = self.simple(body)?;
                    parts.push(part);
                    self.eat(Tok::Sign(','));
                }
                Operand::Vector(parts)
            }
            Tok::Sign('[') => {
                let base = match self.simple(body)? {
                    Operand::Value(value) => value,
                    Operand::Literal(literal) => Value::Imm(literal.bits(Type::U64)),
                    _ => return Err(self.error(token.line, "an address that is not known")),
                };
                let mut offset = 0i64;
                if self.eat(Tok::Sign('+')) || self.peek().is_some_and(|token| token.tok == Tok::Sign('-')) {
                    offset = self.literal()?.bits(Type::S64) as i64;
                }
                self.expect(']')?;
                Operand::Address(Address { base, offset })
            }
            Tok::Sign('!') => match self.simple(body)? {
                Operand::Value(value) => Operand::Not(value),
                _ => return Err(self.error(token.line, "expected a predicate after `!`")),
            },
            _ => {
                self.at -= 1;
                self.simple(body)?
            }
        };
        if self.eat(Tok::Sign('|')) {
            let second = self.simple(body)?;
            return Ok(Operand::Pair(Box::new((operand, second))));
        }
        Ok(operand)
    }

    /// A register, a special register, a variable, a name or a number.
    fn simple(&mut self, body: &Body<'a>) -> Result<Operand<'a>, ParseError> {
        let Some(Token { tok: Tok::Word(name), line }) = self.peek() else {
            return self.literal().map(Operand::Literal);
        };
        self.at += 1;
        if name == "_" {
            return Ok(Operand::Sink);
        }
        if let Some(reg) = body.lookup(name) {
            return Ok(Operand::Value(Value::Reg(reg)));
        }
        if let Some(&symbol) = body.symbols.get(name) {
            // A constant offset may follow outside of brackets, as in `mov.u32 %r1, buffer+16`; NVRTC never writes it.
            return Ok(Operand::Value(Value::Symbol(symbol)));
        }
        if name == "WARP_SZ" {
            return Ok(Operand::Literal(Literal::Int(32)));
        }
        if name.starts_with('%') {
            let special = decode::special(name).ok_or_else(|| self.error(line, format!("no register `{name}`")))?;
            return Ok(Operand::Value(Value::Special(special)));
        }
        Ok(Operand::Name(name))
    }
}

/// A number as the text has it; its bits depend on the type that reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Literal {
    Int(u64),
    Float(f64),
}

impl Literal {
    /// Its bits as a type.
    pub fn bits(self, ty: Type) -> u64 {
        match self {
            Self::Int(value) => value & ty.mask(),
            Self::Float(value) if ty.is_float() => ty.nearest(value),
            Self::Float(value) if ty.bits() == 64 => value.to_bits(),
            Self::Float(value) => u64::from((value as f32).to_bits()) & ty.mask(),
        }
    }
}

/// An entry under construction.
struct Body<'a> {
    entry: Entry,
    symbols: HashMap<String, u32>,
    /// By scope: the one around it, and its registers.
    scopes: Vec<(Option<usize>, HashMap<String, Reg>)>,
    scope: usize,
    labels: HashMap<(usize, &'a str), usize>,
    branches: Vec<(usize, usize, &'a str, u32)>,
}

impl Body<'_> {
    fn new(name: String) -> Self {
        let entry = Entry {
            name,
            params: vec![],
            insts: vec![],
            regs: vec![],
            symbols: vec![],
            param_bytes: 0,
            shared_bytes: 0,
            local_bytes: 0,
            max_threads: None,
        };
        Self {
            entry,
            symbols: HashMap::new(),
            scopes: vec![(None, HashMap::new())],
            scope: 0,
            labels: HashMap::new(),
            branches: vec![],
        }
    }

    fn open(&mut self) {
        self.scopes.push((Some(self.scope), HashMap::new()));
        self.scope = self.scopes.len() - 1;
    }

    fn register(&mut self, name: String, ty: Type) {
        self.scopes[self.scope].1.insert(name, self.entry.regs.len() as Reg);
        self.entry.regs.push(ty);
    }

    fn lookup(&self, name: &str) -> Option<Reg> {
        let mut scope = Some(self.scope);
        while let Some(id) = scope {
            if let Some(&reg) = self.scopes[id].1.get(name) {
                return Some(reg);
            }
            scope = self.scopes[id].0;
        }
        None
    }

    fn symbol(&mut self, name: &str, symbol: Symbol) {
        self.symbols.insert(name.to_string(), self.entry.symbols.len() as u32);
        self.entry.symbols.push(symbol);
    }

    fn shared(&mut self, variable: &Variable<'_>, external: bool) {
        if external {
            return self.symbol(variable.name, Symbol::Dynamic);
        }
        let offset = self.entry.shared_bytes.next_multiple_of(variable.align);
        self.entry.shared_bytes = offset.saturating_add(variable.data.len());
        self.symbol(variable.name, Symbol::Offset(Space::Shared, offset as u64));
    }
}
