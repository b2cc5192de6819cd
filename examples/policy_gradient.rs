//! A policy learns to balance a pole on a cart by REINFORCE (Williams, 1992), with returns measured against their mean.
//!
//! ```text
//! cargo run --release --example policy_gradient -- [--steps N]
//! ```
//!
//! The cart is simulated here, by the equations of Barto, Sutton and Anderson (1983); an episode ends when the pole has
//! fallen, the cart has left its track, or after 200 steps. There is no data to be given.

mod common;

use clap::Parser;
use common::Learnt;
use egret::ir::random::Random;
use egret::nn::{Adam, Layer, Linear, Mode, Params, Sequential};
use egret::{DType, Device, Objective, ScalarFn, Session, Tensor, Trainer, f32, i64, shape};

/// Steps of an episode at most.
const LONGEST: usize = 200;

/// Episodes that are played at a time.
const CARTS: usize = 16;

#[derive(Parser)]
pub(crate) struct Args {
    /// Steps of training, of 16 episodes each.
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// Learning rate.
    #[arg(long, default_value_t = 0.01)]
    rate: f64,
    /// Share of a reward that counts one step earlier.
    #[arg(long, default_value_t = 0.99)]
    discount: f64,
    /// Seed of weights, starts and choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// Place and speed of the cart (m, m/s), angle and turning of the pole (rad, rad/s).
type Cart = [f64; 4];

/// A push of 10 N to the left (0) or the right (1) for 20 ms, by Euler's rule.
fn pushed([x, speed, angle, turning]: Cart, action: usize) -> Cart {
    let (gravity, cart, pole, half, tick) = (9.8, 1.0, 0.1, 0.5, 0.02);
    let force = if action == 1 { 10.0 } else { -10.0 };
    let (sin, cos) = angle.sin_cos();
    let total = cart + pole;
    let push = (force + pole * half * turning * turning * sin) / total;
    let spin = (gravity * sin - cos * push) / (half * (4.0 / 3.0 - pole * cos * cos / total));
    let pull = push - pole * half * spin * cos / total;
    [x + tick * speed, speed + tick * pull, angle + tick * turning, turning + tick * spin]
}

fn is_lost(cart: &Cart) -> bool {
    cart[0].abs() > 2.4 || cart[2].abs() > 12f64.to_radians()
}

/// What was seen, what was done, and by how much that was better than the mean.
struct Played {
    seen: Vec<f32>,
    actions: Vec<i64>,
    advantages: Vec<f32>,
    steps: usize,
}

fn main() {
    common::run(|| learn(&Args::parse()));
}

pub(crate) fn learn(args: &Args) -> egret::Result<Learnt> {
    println!("The cart and its pole are simulated by this program.");
    let device = args.device.clone();
    let policy = Sequential::new().layer(Linear::new(64)).layer(ScalarFn::Tanh).named("out", Linear::new(2));
    let mut trainer = Trainer::new(&device, &Adam::default(), args.seed, |p| {
        let t = p.tracer();
        let logits = policy.forward(p, t.input("seen", f32(shape!["moments", 4])));
        let surprise = logits.cross_entropy(t.input("actions", i64(shape!["moments"])));
        // moments after an episode's end have no advantage
        Objective::new((surprise * t.input("advantages", f32(shape!["moments"]))).mean())
    })?;
    trainer.set_learning_rate(args.rate);
    // the policy alone, over the same parameters
    let acting = egret::trace(|t| {
        let p = Params::new(t, Mode::Evaluate, args.seed);
        [("shares", policy.forward(&p, t.input("seen", f32(shape!["carts", 4]))).softmax(-1))]
    })?;
    let acting = egret::compile(&acting, &device)?;
    let programs = [common::programs(&trainer), vec![acting.clone()]].concat();
    let mut acting = acting.session_with(trainer.state())?;

    let mut random = Random::new(args.seed);
    // how early poles fell
    let mut lost = Vec::new();
    for step in 1..=args.steps {
        let played = play(&mut acting, args.discount, &mut random)?;
        let moments = played.actions.len();
        let seen = Tensor::new(&[moments, 4], &played.seen);
        let (actions, advantages) =
            (Tensor::new(&[moments], &played.actions), Tensor::new(&[moments], &played.advantages));
        if let (Some(seen), Some(actions), Some(advantages)) = (seen, actions, advantages) {
            trainer.step(&[("seen", &seen), ("actions", &actions), ("advantages", &advantages)])?;
        }
        let stood = played.steps as f64 / CARTS as f64;
        lost.push(LONGEST as f64 - stood);
        if step % 10 == 0 || step == args.steps {
            println!("step {step}: the pole stood for {stood:.0} of {LONGEST} steps on average");
        }
    }
    let at = |stood: Option<&f64>| stood.copied().unwrap_or(f64::NAN);
    Ok(Learnt { first: at(lost.first()), last: at(lost.last()), programs })
}

/// One episode of each cart, side by side.
fn play(policy: &mut Session, discount: f64, random: &mut Random) -> egret::Result<Played> {
    let mut carts: Vec<Cart> = (0..CARTS).map(|_| std::array::from_fn(|_| (random.unit() - 0.5) * 0.1)).collect();
    let mut lengths = [LONGEST; CARTS];
    let (mut seen, mut actions) = (Vec::new(), Vec::new());
    for moment in 0..LONGEST {
        let now: Vec<f32> = carts.iter().flatten().map(|v| *v as f32).collect();
        let mut input = Tensor::zeros(DType::F32, &[CARTS, 4]);
        input.as_mut_slice().unwrap_or_default().copy_from_slice(&now);
        let outputs = policy.run(&[("seen", &input)])?;
        let shares = outputs.get("shares").and_then(|o| o.as_slice::<f32>()).unwrap_or_default();
        for (i, (cart, share)) in carts.iter_mut().zip(shares.chunks(2)).enumerate() {
            let action = usize::from(random.unit() >= f64::from(share[0]));
            actions.push(action as i64);
            if lengths[i] == LONGEST {
                *cart = pushed(*cart, action);
                if is_lost(cart) {
                    lengths[i] = moment + 1;
                }
            }
        }
        seen.extend(now);
        if lengths.iter().all(|length| *length <= moment) {
            break;
        }
    }
    // each moment's reward is 1: the return is that of the moments left
    let moments = actions.len() / CARTS;
    let left = |cart: usize, moment: usize| {
        let rest = lengths[cart].min(moments).saturating_sub(moment);
        (1.0 - discount.powi(rest as i32)) / (1.0 - discount)
    };
    let lived = |moment: usize, cart: usize| moment < lengths[cart];
    let all: Vec<f64> =
        (0..moments).flat_map(|m| (0..CARTS).filter(move |c| lived(m, *c)).map(move |c| left(c, m))).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let spread = (all.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt() + 1e-6;
    let advantage = |(m, c): (usize, usize)| if lived(m, c) { ((left(c, m) - mean) / spread) as f32 } else { 0.0 };
    let advantages = (0..moments).flat_map(|m| (0..CARTS).map(move |c| (m, c))).map(advantage).collect();
    Ok(Played { seen, actions, advantages, steps: lengths.iter().map(|l| l.min(&moments)).sum() })
}
