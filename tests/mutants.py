"""Apply mistakes to the code, one after another: the tests must find every one.

    python tests/mutants.py                    # all of them; about five minutes on one core
    python tests/mutants.py ema noise          # those whose names contain one of these words
    python tests/mutants.py --check            # only check that each can still be applied

Every mistake replaces a text that occurs once in a file, in a copy of the project, and names the
test that must fail. The exit status is 1 if a test passes in spite of its mistake, fails without it
or does not exist, or if the text to replace is not found; then update the mistake.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fork_server import Server

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".git", ".venv", "data", "runs", "shared", "__pycache__", ".*_cache")
RUN_PYTEST = (
    "import sys; sys.dont_write_bytecode = True; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Mutant:
    """A mistake: `old` becomes `new` in `file`, and the test function `test` must fail.

    case: an expression for pytest's -k that selects some cases, where these are enough.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    case: str = ""


MUTANTS = [
    # ---- time and the forward process ----------------------------------------------------------
    Mutant(
        "the network counts from 1",
        "DiffusionModel.py",
        "self.unet(x, t - 1, y, augmentation)",
        "self.unet(x, t, y, augmentation)",
        "test_the_network_counts_from_0",
    ),
    Mutant(
        "alpha_bar leaves out t",
        "DiffusionModel.py",
        "alpha_bar = np.cumprod(1 - beta)",
        "alpha_bar = np.cumprod(1 - np.roll(beta, 1))",
        "test_schedule_is_indexed_as_in_the_paper",
    ),
    Mutant(
        "t is sampled from 1..T-1",
        "diffusion/objective.py",
        "torch.randint(1, T + 1, (count,)",
        "torch.randint(1, T, (count,)",
        "test_t_is_uniform_on_1_to_T",
    ),
    Mutant(
        "t is sampled from 0..T",
        "diffusion/objective.py",
        "torch.randint(1, T + 1, (count,)",
        "torch.randint(0, T + 1, (count,)",
        "test_t_is_uniform_on_1_to_T",
    ),
    Mutant(
        "the posterior's mean lacks a square root",
        "DiffusionModel.py",
        "(1 - beta).sqrt() * sigma_s**2 * x_t",
        "(1 - beta) * sigma_s**2 * x_t",
        "test_posterior_is_bayes_rule_for_any_pair_of_times",
    ),
    Mutant(
        "zero terminal SNR changes the first beta",
        "diffusion/schedules.py",
        "* signal[0] / (signal[0] - signal[-1])",
        "/ (signal[0] - signal[-1])",
        "test_zero_terminal_snr_equals_diffusers_and_x_T_is_pure_noise",
    ),
    # ---- what the network predicts, and the loss -----------------------------------------------
    Mutant(
        "the sign in v is wrong",
        "DiffusionModel.py",
        "return signal * eps - sigma * x_0",
        "return signal * eps + sigma * x_0",
        "test_v_is_defined_as_by_salimans_and_ho",
    ),
    Mutant(
        "x0_hat is not divided by the signal",
        "DiffusionModel.py",
        "Prediction((x - sigma * output) / signal, fraction)",
        "Prediction(x - sigma * output, fraction)",
        "test_denoise_undoes_target",
    ),
    Mutant(
        "min-SNR cuts from below",
        "diffusion/objective.py",
        '"min-snr": snr.clamp(max=GAMMA)',
        '"min-snr": snr.clamp(min=GAMMA)',
        "test_weights_are_those_of_their_papers",
    ),
    Mutant(
        "min-SNR+1 vanishes near t = T",
        "diffusion/objective.py",
        "snr.clamp(max=GAMMA) + 1,",
        "snr.clamp(max=GAMMA),",
        "test_weights_are_those_of_their_papers",
    ),
    Mutant(
        "shapes have the preset of other images",
        "run.sh",
        "set -- --preset quick",
        "set --",
        "test_shapes_have_the_quick_preset_by_default",
    ),
    Mutant(
        "high bits/dim are not explained",
        "evaluation/tables.py",
        "> UNIFORM else",
        "> 100 * UNIFORM else",
        "test_values_above_those_of_uniform_noise_are_explained",
    ),
    Mutant(
        "the weight of the loss is left out",
        "DiffusionModel.py",
        "eps, t) * self.weight(t)",
        "eps, t)",
        "test_a_weighted_loss_is_the_weighted_mean_of_the_plain_errors",
    ),
    Mutant(
        "the mean learns from the bound, too",
        "diffusion/likelihood.py",
        "output[:, :C].detach()",
        "output[:, :C]",
        "test_the_hybrid_loss_adds_the_bound_which_only_the_variance_learns_from",
    ),
    Mutant(
        "no label is hidden in training",
        "diffusion/draws.py",
        "torch.where(self.chance(probability), null, y)",
        "y",
        "test_dropped_labels_are_the_null_label",
    ),
    Mutant(
        "the augmentation label has the stretch's direction, not twice it",
        "diffusion/augment.py",
        "(2 * a.direction).cos()",
        "a.direction.cos()",
        "test_a_label_determines_the_augmentation",
    ),
    Mutant(
        "validation draws other noise every time",
        "DiffusionModel.py",
        "Purpose.VALIDATE, batch_idx * share.parts + share.part)",
        "Purpose.VALIDATE, batch_idx, self.trainer.global_step)",
        "test_validation_draws_the_same_noise_every_time",
    ),
    Mutant(
        "the warm-up begins at 0",
        "diffusion/optimizers.py",
        "min(1.0, (step + 1) / max(1, settings.warmup))",
        "min(1.0, step / max(1, settings.warmup))",
        "test_optimizer_is_adam_with_linear_warm_up",
    ),
    Mutant(
        "the rate does not fall to 0",
        "diffusion/optimizers.py",
        "return factor * (1 - progress)",
        "return factor * (1 - progress / 2)",
        "test_the_rate_rises_and_falls",
    ),
    Mutant(
        "Muon without Nesterov's correction",
        "diffusion/optimizers.py",
        "gradient.lerp(momentum, decay)",
        "momentum.clone()",
        "test_a_step_is_that_of_the_paper_written_out",
    ),
    Mutant(
        "Muon updates the last convolution",
        "diffusion/optimizers.py",
        '"conv_out", ',
        "",
        "test_hidden_weights_are_those_between_the_ends",
    ),
    Mutant(
        "a bad gradient spoils Muon's momentum",
        "diffusion/optimizers.py",
        "torch.where(found_inf > 0, momentum, gradient)",
        "gradient",
        "test_gradients_are_divided_by_their_scale_and_change_nothing_if_not_finite",
    ),
    Mutant(
        "autoguidance leads to the worse model",
        "sampling/guidance.py",
        "worse + self.scale * (x0_hat - worse)",
        "x0_hat + self.scale * (worse - x0_hat)",
        "test_autoguidance_extrapolates_from_the_worse_to_the_better_model",
    ),
    Mutant(
        "the guide is too early",
        "checkpoints/early_average.py",
        "(step // 2).bit_length()",
        "(step // 8).bit_length()",
        "test_the_guiding_step_is_a_quarter_to_a_half_of_the_training",
    ),
    Mutant(
        "early averages are thrown away too soon",
        "training/early_averages.py",
        "if s >= oldest",
        "if s > oldest",
        "test_a_run_keeps_what_may_still_be_needed_wherever_it_was_stopped",
    ),
    # ---- the network ---------------------------------------------------------------------------
    Mutant(
        "groups of one channel",
        "Unet.py",
        "max(1, channels // 4)",
        "max(1, channels)",
        "test_narrow_layers_take_fewer_groups",
    ),
    Mutant(
        "pixels are enlarged smoothly",
        "Unet.py",
        'mode="nearest"',
        'mode="bilinear"',
        "test_both_ways_to_enlarge_are_repeated_pixels_and_a_convolution",
    ),
    # ---- one reverse step, samplers and guidance -----------------------------------------------
    Mutant(
        "noise is added in the last step",
        "DiffusionModel.py",
        "if s == 0:",
        "if s < 0:",
        "test_the_last_step_adds_no_noise_and_uses_the_clipped_prediction",
    ),
    Mutant(
        "x0_hat is not clipped",
        "DiffusionModel.py",
        "x0_hat.clamp(-1, 1) if clip else x0_hat",
        "x0_hat",
        "test_the_last_step_adds_no_noise_and_uses_the_clipped_prediction",
    ),
    Mutant(
        "a coefficient of the reverse step lacks its square root",
        "DiffusionModel.py",
        "(1 - beta) ** 0.5 * sigma2_s * x)",
        "(1 - beta) * sigma2_s * x)",
        "test_algorithm_2_line_4_is_the_posterior_without_clipping",
    ),
    Mutant(
        "the small variance is the large one",
        "diffusion/variance.py",
        "return small**0.5",
        "return large**0.5",
        "test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance",
    ),
    Mutant(
        "the ends of the learned variance are swapped",
        "diffusion/variance.py",
        "fraction * math.log(large) + (1 - fraction) * math.log(small)",
        "fraction * math.log(small) + (1 - fraction) * math.log(large)",
        "test_a_step_with_learned_variance_equals_diffusers",
    ),
    Mutant(
        "sampling starts at T - 1",
        "sampling/time_grid.py",
        "times[0] = start",
        "times[0] = start - 1",
        "test_a_grid_goes_from_start_to_0_in_as_many_steps_as_asked_for",
    ),
    Mutant(
        "ddim adds no noise",
        "sampling/samplers.py",
        "x = x + added * noise()",
        "noise()",
        "test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance",
    ),
    Mutant(
        "dpm++ is of first order",
        "sampling/samplers.py",
        "exponential_step(model, x, t, s, node.x0_hat, before)",
        "exponential_step(model, x, t, s, node.x0_hat, [])",
        "test_order_of_convergence_on_a_mixture",
    ),
    Mutant(
        "heun follows a slope too far",
        "sampling/samplers.py",
        "if sigma_s and sigma_t * signal_s < 4 * sigma_s * signal_t:",
        "if sigma_s:",
        "test_few_steps_reach_the_covariance_of_a_gaussian_with_every_schedule",
        "heun-cosine",
    ),
    Mutant(
        "unipc takes a slope over steps that are too short",
        "sampling/samplers.py",
        "(levels(model, s)[2] - node.log_snr) / 4",
        "(levels(model, s)[2] - node.log_snr) / 1e9",
        "test_two_times_close_together_disturb_no_solver",
        "unipc",
    ),
    Mutant(
        "the sign of guidance is wrong",
        "sampling/guidance.py",
        "unconditional + self.scale * (conditional - unconditional)",
        "unconditional - self.scale * (conditional - unconditional)",
        "test_guidance_extrapolates_from_the_unlabelled_to_the_labelled_prediction",
    ),
    Mutant(
        "guidance is stronger by 1",
        "sampling/guidance.py",
        "unconditional + self.scale * (conditional - unconditional)",
        "unconditional + (self.scale + 1) * (conditional - unconditional)",
        "test_guidance_extrapolates_from_the_unlabelled_to_the_labelled_prediction",
    ),
    Mutant(
        "guidance takes no notice of its interval",
        "sampling/guidance.py",
        " or not low <= int(t[0]) <= high",
        "",
        "test_guidance_applies_only_in_its_interval",
    ),
    Mutant(
        "every batch of samples begins with the same noise",
        "sampling/plan.py",
        "noise = Noise(seed, indices,",
        "noise = Noise(seed, range(len(indices)),",
        "test_image_i_is_the_same_in_any_batch_and_process",
    ),
    Mutant(
        "every frame has its own range of values",
        "sampling/generate.py",
        "to_uint8(x)",
        "to_uint8(x / x.abs().amax())",
        "test_pure_noise_has_the_value_range_of_images",
    ),
    Mutant(
        "every frame of a GIF is stretched to the full range",
        "sampling/animation.py",
        "rgb = np.broadcast_to(images,",
        "rgb = np.broadcast_to((images / max(1, images.max()) * 255).astype(np.uint8),",
        "test_the_gif_shows_the_frames_as_they_are",
    ),
    Mutant(
        "pictures of an earlier run stay",
        "sampling/output_files.py",
        "file not in written",
        "False",
        "test_pictures_of_an_earlier_run_are_removed",
    ),
    Mutant(
        "values are truncated, not rounded",
        "Dataset.py",
        "(x * 127.5 + 127.5).round()",
        "(x * 127.5 + 127.5)",
        "test_values_are_rounded_and_not_truncated",
    ),
    # ---- images and batches --------------------------------------------------------------------
    Mutant(
        "gray images are refused",
        "image_data/npz_files.py",
        "array.shape[-1] in (1, 3)",
        "array.shape[-1] == 3",
        "test_image_arrays_are_recognized",
    ),
    Mutant(
        "every epoch has the same order",
        "Dataset.py",
        "(self.seed, Purpose.ORDER, self.epoch)",
        "(self.seed, Purpose.ORDER)",
        "test_an_epoch_is_a_permutation_and_the_next_another",
    ),
    Mutant(
        "the order of the images repeats after a resume",
        "Dataset.py",
        'self.epoch, self.batch = state["epoch"], state["batch"]',
        "self.epoch, self.batch = 0, 0",
        "test_batches_after_a_resume_are_those_of_an_uninterrupted_run",
    ),
    Mutant(
        "the batch size is that of one process",
        "Dataset.py",
        "share = self.batch_size // self.world_size",
        "share = self.batch_size",
        "test_processes_share_each_batch",
        "2",
    ),
    Mutant(
        "every process and micro-batch has the noise of the first one",
        "diffusion/draws.py",
        "slice(share.part * len(x), (share.part + 1) * len(x))",
        "slice(0, len(x))",
        "test_a_step_in_micro_batches_is_that_of_the_whole_batch",
    ),
    Mutant(
        "all micro-batches of a step have the same noise",
        "training/batches.py",
        "Share(rank * accumulate + i,",
        "Share(rank * accumulate,",
        "test_a_step_in_micro_batches_is_that_of_the_whole_batch",
    ),
    Mutant(
        "images are mirrored upside down",
        "Dataset.py",
        "x.flip(3)",
        "x.flip(2)",
        "test_flips_mirror_about_half_of_the_images",
    ),
    Mutant(
        "mapped images keep the file's channels-last layout",
        "image_data/mapped_images.py",
        "images.transpose(0, 3, 1, 2).copy()",
        "images.transpose(0, 3, 1, 2)",
        "test_batches_are_those_of_images_in_memory",
        "True-8",
    ),
    Mutant(
        "mapped images are those of both splits",
        "image_data/fitting.py",
        "MappedImages(split.images, split.rows)",
        "MappedImages(split.images)",
        "test_batches_are_those_of_images_in_memory",
        "True-8",
    ),
    Mutant(
        "the saved position counts prefetched batches",
        "Dataset.py",
        "self.batch = batch + 1\n",
        "self.batch = min(batch + 3, len(self))\n",
        "test_a_position_in_mapped_images_is_that_of_images_in_memory",
        "9",
    ),
    Mutant(
        "decoding a folder keeps all its images in memory",
        "image_data/image_files.py",
        "Parts(shape, parts)",
        "np.concatenate([*parts])",
        "test_decoding_does_not_keep_the_images_in_memory",
    ),
    Mutant(
        "a mapped array may have another size than its file",
        "image_data/mapped_images.py",
        "if data - start + math.prod(shape) != member.file_size:",
        "if False:",
        "test_a_damaged_file_is_refused",
        "shape",
    ),
    # ---- training: averages, resuming, steps that are skipped ----------------------------------
    Mutant(
        "the average is written into the live weights",
        "training/ema.py",
        "lerp(self.averages, self.live, 1 - decay)",
        "lerp(self.averages, self.live, 1 - decay); lerp(self.live, self.averages, 1.0)",
        "test_ema_follows_its_formula_and_forgets_the_initialization",
    ),
    Mutant(
        "the average keeps the initialization",
        "training/ema.py",
        "decay = min(self.decay, (1 + self.n) / (10 + self.n))",
        "decay = self.decay",
        "test_ema_follows_its_formula_and_forgets_the_initialization",
    ),
    Mutant(
        "the average is lost on resume",
        "training/ema.py",
        'self.weights = checkpoint["ema"]["weights"]',
        "self.weights = {}",
        "test_a_resumed_run_is_the_run_that_was_not_stopped",
        "0-5-choices0",
    ),
    Mutant(
        "previews leave the average in the model",
        "training/ema.py",
        "model.unet.load_state_dict(live)",
        "pass",
        "test_ema_applied_gives_the_weights_back_after_an_error",
    ),
    Mutant(
        "samples are of the live weights",
        "checkpoints/checkpoint.py",
        '{f"unet.{name}": value for name, value in checkpoint["ema"]["weights"].items()}',
        'checkpoint["state_dict"]',
        "test_the_average_is_separate_from_the_weights_and_complete",
    ),
    Mutant(
        "mixed precision is never on",
        "training/trainer.py",
        'precision="bf16-mixed" if machine.precision == "bf16" else "32-true",',
        'precision="32-true",',
        "test_bf16_is_on_when_it_is_asked_for",
    ),
    Mutant(
        "noise is numbered by the batch of the epoch",
        "DiffusionModel.py",
        "self.get_loss(batch, self.trainer.global_step)",
        "self.get_loss(batch, batch_idx)",
        "test_the_loss_gets_images_in_range_and_the_global_step",
    ),
    Mutant(
        "a resumed run goes on with other noise",
        "training/divergence.py",
        'attempt = checkpoint["noise"]["stream"] if checkpoint else 0',
        "attempt = 0 if checkpoint is None else 1",
        "test_a_resumed_run_is_the_run_that_was_not_stopped",
        "0-5-choices0",
    ),
    Mutant(
        "dropout is not a function of the step",
        "training/dropout_seed.py",
        "torch.default_generator.manual_seed(seed)",
        "pass",
        "test_a_resumed_run_is_the_run_that_was_not_stopped",
        "0.3-6-choices1",
    ),
    Mutant(
        "a step that is not finite is taken",
        "training/gradient_guard.py",
        "bad = (~norm.isfinite()).float()",
        "bad = (~norm.isfinite()).float() * 0",
        "test_a_step_is_skipped_if_only_its_gradient_is_not_finite",
    ),
    Mutant(
        "the gradient is not clipped without a fused Adam",
        "training/gradient_guard.py",
        "torch._foreach_div_(gradients, scale)",
        "pass",
        "test_the_gradients_norm_is_clipped",
    ),
    # ---- files and signals ---------------------------------------------------------------------
    Mutant(
        "a file is written under its final name",
        "runtime/atomic_file.py",
        'temporary = path.with_name(f"{prefix}{os.getpid()}{path.suffix}")',
        "temporary = path",
        "test_a_file_appears_when_it_is_complete",
    ),
    Mutant(
        "torch.save hides why a write failed",
        "checkpoints/checkpoint_file.py",
        "torch.save(contents, writer)",
        "torch.save(contents, file)",
        "test_a_full_disk_is_an_os_error",
    ),
    Mutant(
        "the host's lack of memory is not recognized",
        "runtime/launcher.py",
        'if "DefaultCPUAllocator" in',
        'if "DefaultGPUAllocator" in',
        "test_memory_that_the_host_lacks_is_a_memory_error",
    ),
    Mutant(
        "a tracker that fails ends the training",
        "training/trackers.py",
        "except Exception as error:",
        "except ValueError as error:",
        "test_a_tracker_that_fails_is_left_out_and_training_goes_on",
        "log",
    ),
    Mutant(
        "a validation that a kill cut off stays missing",
        "training/missed_validation.py",
        "if not has_loss:",
        "if False:",
        "test_a_validation_lost_to_a_kill_is_done_after_the_resume",
        "validation and 6",
    ),
    Mutant(
        "the last validation that a kill cut off stays missing",
        "training/start.py",
        "return not machine.processes.broadcast(complete)",
        "return False",
        "test_a_validation_lost_to_a_kill_is_done_after_the_resume",
        "12",
    ),
    Mutant(
        "a resumed run is a new one in a tracker",
        "training/trackers.py",
        'if re.fullmatch(r"[0-9a-f]{8}", found):',
        'if re.fullmatch(r"[0-9a-f]{9}", found):',
        "test_trackers_get_metrics_and_previews_and_go_on_with_the_same_run",
    ),
    Mutant(
        "the checksum of a checkpoint is not compared",
        "checkpoints/checkpoint_file.py",
        "if not beside.is_file():",
        "if True:",
        "test_a_bad_newest_checkpoint_is_skipped",
        "one and byte",
    ),
    Mutant(
        "code in a checkpoint is run",
        "checkpoints/checkpoint_file.py",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        "test_bad_checkpoints_are_refused",
        "malicious",
    ),
    Mutant(
        "one more checkpoint is kept",
        "checkpoints/run_dir.py",
        "list_checkpoints(run_dir)[keep:]",
        "list_checkpoints(run_dir)[keep + 1 :]",
        "test_two_checkpoints_are_kept",
    ),
    Mutant(
        "signals do not end training",
        "training/checkpointing.py",
        "trainer.should_stop = bool(request) or",
        "trainer.should_stop = request == TIME_IS_OVER or",
        "test_sigterm_in_a_job_exits_with_75",
    ),
    Mutant(
        "the exit status after a signal lacks 128",
        "runtime/signals.py",
        "return 128 + number",
        "return number",
        "test_exit_statuses",
    ),
    Mutant(
        "a job that was stopped is not run again",
        "runtime/signals.py",
        'if "SLURM_JOB_ID" in os.environ or number',
        "if number",
        "test_exit_statuses",
    ),
    Mutant(
        "a job that was stopped is not put into the queue again",
        "run.sh",
        "75|134|137|138|140|143)",
        "134|137|138|140|143)",
        "test_a_job_that_was_stopped_is_queued_again_eight_times_at_most",
    ),
    Mutant(
        'a flag for which "False" is true',
        "train.py",
        'add("--dry-run", action="store_true",',
        'add("--dry-run", type=bool,',
        "test_no_flag_is_true_for_the_word_false_and_no_pickle_is_run",
    ),
    # ---- measuring -----------------------------------------------------------------------------
    Mutant(
        "bits/dim are in nats",
        "diffusion/likelihood.py",
        "return nats.mean(dim=(1, 2, 3)) / math.log(2)",
        "return nats.mean(dim=(1, 2, 3))",
        "test_the_bound_of_a_gaussian_is_its_entropy",
    ),
    Mutant(
        "the sign of the divergence is wrong",
        "diffusion/probability_flow.py",
        "z[0].numel() - torch.stack(traces).mean(0)",
        "torch.stack(traces).mean(0) - z[0].numel()",
        "test_the_flow_of_a_gaussian_has_its_density",
    ),
    Mutant(
        "the sampled terms are not divided by their number",
        "diffusion/likelihood.py",
        "like(K * p[index], x_0)",
        "like(p[index], x_0)",
        "test_the_estimate_has_the_bounds_mean",
    ),
    Mutant(
        "the first step's variance is that of all others",
        "diffusion/likelihood.py",
        "log_variance = torch.where(first, small, large).log()",
        "log_variance = large.log()",
        "test_terms_equal_a_slow_loop",
    ),
    Mutant(
        "the likelihood takes no notice of labels",
        "diffusion/likelihood.py",
        "model.denoise(x_t, t) if y is None else model.denoise(x_t, t, y)",
        "model.denoise(x_t, t)",
        "test_the_bound_depends_on_the_labels",
    ),
    Mutant(
        "the values of a padded border are counted",
        "evaluation/bits_per_dim.py",
        "32**2 / 28**2",
        "1",
        "test_bits_per_dim_of_padded_digits_are_also_given_for_28x28",
    ),
    Mutant(
        "the nearest image is the image itself",
        "evaluation/neighbours.py",
        "distances[own - start, own - first] = torch.inf",
        "pass",
        "test_the_nearest_are_those_of_a_slow_search",
    ),
    Mutant(
        "the exponent of a post-hoc average is off by 1",
        "checkpoints/posthoc_ema.py",
        "(1 - 1 / step) ** (exponent + 1)",
        "(1 - 1 / step) ** exponent",
        "test_the_exponents_are_those_of_edm2",
    ),
    # ---- more of all the sections above ---------------------------------------------------------
    Mutant(
        "a closed pipe ends a script",
        "runtime/output.py",
        "            self.discard(error)\n            return len(text)",
        "            raise",
        "test_without_a_reader",
    ),
    Mutant(
        "a character that the encoding lacks ends a script",
        "runtime/output.py",
        'stream.reconfigure(errors="backslashreplace")',
        'stream.reconfigure(errors="strict")',
        "test_a_folder_that_the_encoding_cannot_print",
    ),
    Mutant(
        "a closed terminal loses the run",
        "runtime/signals.py",
        "signal.SIGTERM, signal.SIGHUP,",
        "signal.SIGTERM,",
        "test_a_signal_leaves_a_complete_checkpoint_and_a_clear_last_line",
    ),
    Mutant(
        "nohup is not obeyed",
        "runtime/signals.py",
        "signal.getsignal(name) == signal.SIG_IGN",
        "False",
        "test_under_nohup_a_closed_terminal_does_not_stop_it",
    ),
    Mutant(
        "every image has a range of values of its own",
        "image_data/image_files.py",
        "decode_image(path, self.size, self.values)",
        "decode_image(path, self.size)",
        "test_a_dark_image_stays_darker_than_another",
    ),
    Mutant(
        "height and width change places in a resized image",
        "image_data/image_files.py",
        "ImageOps.fit(picture, (width, height),",
        "ImageOps.fit(picture, (height, width),",
        "test_the_centre_is_cropped_to_the_proportions",
    ),
    Mutant(
        "attention follows the resolution of the larger side",
        "runtime/image_size.py",
        "return min(height_and_width(size))",
        "return max(height_and_width(size))",
        "test_attention_resolutions_are_those_of_the_smaller_side",
    ),
    Mutant(
        "only the height must divide",
        "Unet.py",
        "any(side % divisor for side in sides)",
        "any(side % divisor for side in sides[:1])",
        "test_sizes_that_do_not_divide_are_refused",
    ),
    Mutant(
        "turning shears an image that is not square",
        "diffusion/augment.py",
        "linear[:, 0, 1] *= height / width",
        "linear[:, 0, 1] *= width / height",
        "test_images_that_are_not_square_turn_without_shear",
    ),
    Mutant(
        "shapes are stretched by the image",
        "image_data/shapes.py",
        "across = (np.arange(W, dtype=np.float32) + 0.5) / side",
        "across = (np.arange(W, dtype=np.float32) + 0.5) / W",
        "test_shapes_are_not_stretched_by_the_image",
    ),
    Mutant(
        "12 bits are taken for 16",
        "image_data/value_range.py",
        "BITS = (8, 10, 12, 14, 16)",
        "BITS = (8, 16)",
        "test_the_smallest_usual_range_is_taken",
    ),
    Mutant(
        "negative values are cut off",
        "image_data/value_range.py",
        "not fractions and low >= 0 and high < 2**bits",
        "not fractions and high < 2**bits",
        "test_values_of_no_usual_range_are_refused",
    ),
    Mutant(
        "the picture of an earlier evaluation is taken for a sample",
        "evaluation/image_sets.py",
        "return file.name in pictures and",
        "return file.name not in pictures and",
        "test_a_second_run_ignores_the_earlier_picture_and_reuses_the_features",
    ),
    Mutant(
        "reference images are their own neighbours",
        "evaluation/neighbours.py",
        "nearest(real, reference, exclude_self=True)",
        "nearest(real, reference)",
        "test_the_ratio_of_two_sets_of_the_same_distribution_is_1",
    ),
    Mutant(
        "samples of 28x28 are padded on one side",
        "evaluation/image_sets.py",
        "(2, 2, 2, 2)",
        "(0, 4, 2, 2)",
        "test_28x28_is_padded_as_the_dataset_is",
    ),
    Mutant(
        "evaluate.py reads images in another range than the run",
        "evaluation/preparation.py",
        'None if plan.dataset else config.get("value_range")',
        "None",
        "test_evaluation_reads_the_images_with_the_range_of_the_run",
    ),
    Mutant(
        "the doctor reads images in another range than the run",
        "evaluation/doctor.py",
        'None if dataset else config.get("value_range")',
        "None",
        "test_evaluation_reads_the_images_with_the_range_of_the_run",
    ),
    Mutant(
        "layers of the initial weights are dropped silently",
        "training/initial_weights.py",
        "in new + dropped if",
        "in new if",
        "test_another_network_is_refused_with_the_flags_to_give",
    ),
    Mutant(
        "cifar10 has the guidance of the other datasets",
        "train.py",
        "parser.set_defaults(guidance=CIFAR10_GUIDANCE)",
        "pass",
        "test_the_laptop_preset_has_stronger_guidance_for_cifar10",
    ),
    Mutant(
        "fine-tuning takes the objective of the preset",
        "training/initial_weights.py",
        "for name in (*network, *OBJECTIVE)}",
        "for name in (*network, 'T')}",
        "test_network_and_objective_are_those_of_the_weights",
    ),
    Mutant(
        "a model trained only with labels is sampled without one",
        "sampling/arrangement.py",
        "if request.without_class and classes and always_labelled:",
        "if False:",
        "test_a_model_trained_only_with_labels_always_gets_one",
    ),
    Mutant(
        "a run begins with its own weights",
        "training/setup.py",
        "settings.init_from.resolve().is_relative_to(run_dir.resolve())",
        "False",
        "test_weights_of_the_run_itself_are_refused",
    ),
    Mutant(
        "skipped steps are not reported",
        "training/gradient_guard.py",
        "self.skipped_since_report += bad",
        "pass",
        "test_a_step_that_is_not_finite_is_skipped",
    ),
    Mutant(
        "the cores of the whole machine count",
        "runtime/cores.py",
        "if core in mine:",
        'if core.startswith("cpu"):',
        "test_only_the_cores_of_this_process_count",
    ),
    Mutant(
        "too few idle teams",
        "runtime/cores.py",
        "return max(1, (cores - threads) // (threads - 1) + 1)",
        "return 1",
        "test_there_are_more_threads_than_cores",
    ),
    Mutant(
        "an early average guides labelled images by default",
        "sampling/guidance.py",
        'guide_with = "labels" if by_label or',
        'guide_with = "labels" if',
        "test_which_guide_is_chosen",
    ),
    Mutant(
        "Newton-Schulz does not update G",
        "diffusion/optimizers.py",
        "        G = P @ G @ P\n",
        "",
        "test_the_iterations_are_those_of_newton_and_schulz_written_out",
    ),
    Mutant(
        "the forward process ignores --T",
        "sampling/prepare.py",
        "        T=request.T,\n",
        "",
        "test_the_forward_process_without_a_checkpoint_has_a_length_and_a_schedule",
    ),
    # ---- networks of diffusers ------------------------------------------------------------------
    Mutant(
        "the log SNR of diffusers' laplace schedule rises",
        "checkpoints/diffusers_scheduler.py",
        "np.where(u > 0.5, 0.5, -0.5)",
        "np.where(u > 0.5, -0.5, 0.5)",
        "test_ddim_samples_the_images_of_diffusers",
        "laplace",
    ),
    Mutant(
        'a UNet2DModel\'s label embedding gets no row for "no label"',
        "checkpoints/diffusers_format.py",
        'label = "net.class_embedding.weight"',
        'label = "class_embedding.weight"',
        "test_every_label_of_a_network_of_diffusers_is_a_class",
    ),
    Mutant(
        "fine-tuning drops the network of diffusers",
        "training/initial_weights.py",
        '(*NETWORK, "unet2d")',
        "NETWORK",
        "test_a_run_that_begins_with_it_keeps_its_network",
    ),
    Mutant(
        "the size of a network's output is not checked",
        "checkpoints/networks.py",
        "    check_output(config)\n",
        "",
        "test_a_configuration_that_cannot_be_used_gives_a_one_line_error",
        "sample_size",
    ),
    # ---- image-conditional models ---------------------------------------------------------------
    Mutant(
        "the condition of super-resolution has all pixels",
        "diffusion/conditions.py",
        "        return enlarge(F.avg_pool2d(x_0, factor), factor)\n",
        "        return x_0\n",
        "test_the_smaller_image_is_all_that_is_known",
    ),
    Mutant(
        "known pixels are not kept",
        "diffusion/conditions.py",
        "    return torch.where(hidden, x0_hat, known)\n",
        "    return x0_hat\n",
        "test_hidden_pixels_are_hidden_and_the_others_known",
    ),
    Mutant(
        "all parts of a batch have the masks of the first",
        "diffusion/draws.py",
        "            mask = masks[self.rows]\n",
        "            mask = masks[: len(x)]\n",
        "test_a_batch_may_be_divided",
    ),
]


def files_of_tests() -> dict[str, list[str]]:
    """The files that define each test function."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(str(file.relative_to(ROOT)))
    return found


def out_of_date(mutants: list[Mutant]) -> list[str]:
    """What is wrong with mistakes that can no longer be applied, or whose test does not exist."""
    wrong, files = [], files_of_tests()
    for mutant in mutants:
        path = ROOT / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else 0
        if count != 1:
            wrong.append(f"{mutant.name}: its text occurs {count} times in {mutant.file}")
        if len(files.get(mutant.test, [])) != 1:
            wrong.append(
                f"{mutant.name}: {mutant.test} is defined in {files.get(mutant.test, 'no file')}"
            )
    return wrong


class Copy:
    """A copy of the project, in which tests are run."""

    def __init__(self, folder: Path):
        self.folder = folder / "project"
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self.files = files_of_tests()
        self.server = Server()
        self.outputs = folder

    def node(self, mutant: Mutant) -> list[str]:
        """Words for pytest that select the mutant's test."""
        node = f"{self.files[mutant.test][0]}::{mutant.test}"
        return [node, "-k", mutant.case] if mutant.case else [node]

    def status(self, *words: str) -> tuple[int, str]:
        """pytest's exit status, and what it printed."""
        out, err = (self.outputs / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        argv = ["-c", RUN_PYTEST, "-q", "-x", "-p", "no:cacheprovider", *words]
        child = self.server.start(argv, self.folder, environment, out, err)
        try:
            status = child.wait(600)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            status = 1  # the mistake keeps the test from ending
        return status, out.read_text() + err.read_text()

    def is_found(self, mutant: Mutant) -> tuple[bool, str]:
        """Apply the mistake; return whether the test fails, and what pytest printed."""
        file = self.folder / mutant.file
        original = file.read_text()
        file.write_text(original.replace(mutant.old, mutant.new))
        try:
            status, printed = self.status(*self.node(mutant))
        finally:
            file.write_text(original)
        return status == 1, printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "words", nargs="*", help="only mistakes whose names contain one of these (all)"
    )
    parser.add_argument("--check", action="store_true", help="apply no mistake")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.words or any(word in m.name for word in args.words)]
    wrong = out_of_date(chosen)
    for line in wrong:
        print(line)
    if args.check or wrong:
        return int(bool(wrong))
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        nodes = {copy.node(mutant)[0] for mutant in chosen}
        status, printed = copy.status(*sorted(nodes))
        if status:
            print(f"{printed}\nthese tests fail without a mistake")
            return 1
        missed = 0
        for mutant in chosen:
            began = time.monotonic()
            found, printed = copy.is_found(mutant)
            missed += not found
            seconds = time.monotonic() - began
            print(
                f"{'found' if found else 'NOT FOUND':9}  {seconds:4.0f} s  {mutant.name}",
                flush=True,
            )
            if not found:
                print(printed)
    print(f"{len(chosen) - missed} of {len(chosen)} mistakes found")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
