//! A 440 Hz tone in G.711 µ-law, and an ear for it.

use std::f64::consts::TAU;

/// Samples per second of G.711.
pub(crate) const RATE_HZ: f64 = 8_000.0;
/// Samples per packet: 20 ms.
pub(crate) const FRAME_SAMPLES: usize = 160;

const TONE_HZ: f64 = 440.0;
const AMPLITUDE: f64 = 12_000.0;
/// Below this root mean square a frame is silence, whatever its spectrum.
const SILENCE_RMS: f64 = 300.0;
/// Share of a frame's energy that lies in the tone. A pure tone has ~1, noise ~0.01, speech < 0.5.
const TONE_SHARE_MIN: f64 = 0.6;

/// Writes the tone, frame after frame, without a jump in phase.
#[derive(Debug, Default)]
pub(crate) struct Tone {
    phase: f64,
}

impl Tone {
    pub(crate) fn frame(&mut self) -> [u8; FRAME_SAMPLES] {
        std::array::from_fn(|_| {
            self.phase = (self.phase + TAU * TONE_HZ / RATE_HZ) % TAU;
            encode((self.phase.sin() * AMPLITUDE) as i16)
        })
    }
}

/// Whether a frame of µ-law is mostly the tone.
pub(crate) fn is_tone(frame: &[u8]) -> bool {
    if frame.len() < FRAME_SAMPLES / 2 {
        return false;
    }
    let samples: Vec<f64> = frame.iter().map(|&byte| f64::from(decode(byte))).collect();
    let energy: f64 = samples.iter().map(|sample| sample * sample).sum();
    let count = samples.len() as f64;
    let rms = (energy / count).sqrt();
    rms > SILENCE_RMS && 2.0 * goertzel(&samples) / (count * energy) > TONE_SHARE_MIN
}

/// Squared magnitude of the Fourier sum at the tone (Goertzel 1958).
fn goertzel(samples: &[f64]) -> f64 {
    let coefficient = 2.0 * (TAU * TONE_HZ / RATE_HZ).cos();
    let (mut one, mut two) = (0.0, 0.0);
    for sample in samples {
        (one, two) = (sample + coefficient * one - two, one);
    }
    one * one + two * two - coefficient * one * two
}

/// ITU-T G.711 µ-law.
fn encode(sample: i16) -> u8 {
    const BIAS: i32 = 0x84;
    let sign = if sample < 0 { 0x80 } else { 0 };
    let magnitude = (i32::from(sample).abs().min(32_635)) + BIAS;
    let exponent = (0..8).rev().find(|bit| magnitude >= 0x80 << bit).unwrap_or(0);
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    let byte = sign | (exponent << 4) | mantissa;
    !u8::try_from(byte).expect("sign, three and four bits")
}

fn decode(byte: u8) -> i16 {
    let byte = i32::from(!byte);
    let magnitude = ((((byte & 0x0f) << 3) + 0x84) << ((byte >> 4) & 7)) - 0x84;
    let sample = if byte & 0x80 == 0 { magnitude } else { -magnitude };
    i16::try_from(sample).expect("14 bits, shifted by two")
}

#[test]
fn the_ear_knows_the_tone() {
    let mut tone = Tone::default();
    assert!((0..50).all(|_| is_tone(&tone.frame())));
    assert!(!is_tone(&[0xff; FRAME_SAMPLES]), "silence");
    let noise: Vec<u8> = (0..160_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(!is_tone(&noise));
    let other: Vec<u8> =
        (0..160).map(|n| encode(((TAU * 1_000.0 * f64::from(n) / RATE_HZ).sin() * AMPLITUDE) as i16)).collect();
    assert!(!is_tone(&other), "1 kHz");
    assert!(!is_tone(&[]));
}

#[test]
fn g711_keeps_the_sample_within_its_step() {
    for sample in (i16::MIN..=i16::MAX).step_by(7) {
        let error = (i32::from(decode(encode(sample))) - i32::from(sample)).abs();
        assert!(error <= i32::from(sample.unsigned_abs()) / 16 + 8, "{sample}: off by {error}");
    }
}
