"""The seeded faults: what is broken, by which edit, and the gate or test that has to notice.

file: in the installed package, ``visrl/…``, ``evals/…`` or ``tasks/…`` as in the repository. before -> after: occurs exactly
once there. catcher: ``prompt gate``, ``replay gate``, ``paired gate`` (the world suite's, on the shipped model), or a pytest node. A fault whose text is gone is an error, not a pass: mend its entry.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    what: str
    file: str
    before: str
    after: str
    catcher: str


T = "tests/"
FAULTS = [
    # prompts and layouts
    Fault("a byte of the box prompt", "visrl/core/prompts.py", '"Please answer the question based on', '"Please answer the Question based on', "prompt gate"),
    Fault("the blank before the box sentence lost", "visrl/core/prompts.py", 'P_BOX = " Please', 'P_BOX = "Please', "prompt gate"),
    Fault("the box turn's question not lower-cased", "visrl/core/prompts.py", "{sample.question.lower()}. {P_BOX", "{sample.question}. {P_BOX", "prompt gate"),
    Fault("the instruction asked where a box is asked for", "visrl/core/prompts.py", '{sample.question}{P_BOX}"', '{sample.question}{sample.instruction}{P_BOX}"', "prompt gate"),
    Fault("the box text missing from the conversation", "visrl/core/prompts.py", 'Turn("assistant", (box_text,)), Turn("user", follow_up)', 'Turn("assistant", ("",)), Turn("user", follow_up)', "prompt gate"),
    Fault("a blank of Vicuna's layout lost", "visrl/core/chat_format.py", 'user_end=" "', 'user_end=""', "prompt gate"),
    Fault("a swapped axis in one family (PaliGemma)", "visrl/core/box_syntax.py", '(1, 0, 3, 2) if self.order == "yxyx"', '(0, 1, 2, 3) if self.order == "yxyx"', "prompt gate"),
    Fault("width and height swapped in Qwen2.5-VL's frame", "visrl/core/boxes.py", "return wide, high", "return high, wide", "prompt gate"),
    Fault("Qwen3-VL's boxes counted to 999", "visrl/core/box_formats.py", 'BoxFormat("json_1000", JsonObject(), grid(1000))', 'BoxFormat("json_1000", JsonObject(), grid(999))', "prompt gate"),
    # frames, crops
    Fault("the padded square's offset off by one", "visrl/core/boxes.py", "-float((side - size[1]) // 2)", "-float((side - size[1]) // 2 + 1)", "replay gate"),
    Fault("IoU without subtracting the intersection", "visrl/core/boxes.py", "union = area(a) + area(b) - inter", "union = area(a) + area(b)", "replay gate"),
    Fault("the evaluation crop larger by one pixel", "visrl/core/crops.py", "int(min(float(length), centre + half))", "int(min(float(length), centre + half + 1))", "replay gate"),
    Fault("the tight crop rounded inwards", "visrl/core/crops.py", "math.ceil(x2), math.ceil(y2)", "math.floor(x2), math.floor(y2)", "replay gate"),
    Fault("the compatible crop mended", "visrl/core/crops.py", "near.to(SQUARE, size).xyxy", "near.to(UNIT, size).xyxy", "replay gate"),
    Fault("random boxes not drawn per sample", "visrl/rollout/rollout.py", '{config.seed}:{rollout.sample.task}:{rollout.sample.id}"', '{config.seed}:{rollout.sample.task}"', "replay gate"),
    Fault("an unparsed box answered from the centre", "visrl/rollout/rollout.py", "isinstance(rollout.episode.box, Box) else whole(rollout.size)", 'isinstance(rollout.episode.box, Box) else control_box("centre", None, rollout.size, random.Random(0))', "replay gate"),
    # parsing
    Fault("the reasoning's box wins over the answer's", "visrl/core/box_formats.py", "answer = final_answer(text)", "answer: str | Unparsed = text", "replay gate"),
    Fault("strict reading takes the first box", "visrl/core/box_formats.py", "found[0] if self.mode == \"lenient\" else found[-1]", "found[0]", "replay gate"),
    Fault("lists of three numbers read as boxes at zero", "visrl/core/box_syntax.py", "return Unparsed(_why_no_list(text))", "return [(0.0, 0.0, 1.0, 1.0)]", "replay gate"),
    # benchmarks' rules
    Fault(">= for > at IoU 0.5", "evals/scorers/rec.py", "overlap > 0.5", "overlap >= 0.5", "replay gate"),
    Fault("POPE: 'not' no longer means no", "evals/scorers/pope.py", 'frozenset({"No", "not", "no"})', 'frozenset({"No", "no"})', "replay gate"),
    Fault("POPE: the whole answer instead of its first sentence", "evals/scorers/pope.py", 'text.split(".", 1)[0].replace', "text.replace", "replay gate"),
    Fault("MME: pairs by consecutive lines", "evals/scorers/mme.py", "pictures.setdefault((scores.groups[row], scores.clusters[row]), [])", "pictures.setdefault((scores.groups[row], str(row // 2)), [])", "replay gate"),
    Fault("MME: one right answer of a pair is enough", "evals/scorers/mme.py", "+ all(values))", "+ any(values))", "replay gate"),
    Fault("MMBench without rotations", "evals/scorers/mmbench.py", "circular = ONE if all(score.value for score in own) else ZERO", "circular = ONE if own[0].value else ZERO", "replay gate"),
    Fault("MMBench: a missing rotation is forgiven", "evals/scorers/mmbench.py", "complete = len(rows) >= rotations[group] and", "complete =", "replay gate"),
    # unscored, uncertainty
    Fault("a failed sample counts as zero", "evals/scorers/measure.py", "values = scores.column(metric)\n    rows = np.flatnonzero", "values = np.nan_to_num(scores.column(metric))\n    rows = np.flatnonzero", "replay gate"),
    Fault("a failed judge counts as zero", "evals/judge.py", 'return Score(None, f"{NO_REPLY}: {type(error).__name__ if cause is None else cause}")', "return Score(0.0)", T + "evals/test_judge.py::test_no_server_is_unscored_not_a_crash"),
    Fault("the cluster key lost", "evals/scorers/columns.py", "self.clusters.append(self._once(sample.cluster) if sample.cluster else sample.id)", "self.clusters.append(sample.id)", "replay gate"),
    Fault("no small-sample correction", "evals/stats.py", "math.sqrt(size / (size - 1) * float", "math.sqrt(1.0 * float", "replay gate"),
    Fault("1.96 for Student's t", "evals/stats.py", "return float(stdtrit(degrees, 0.975))", "return 1.96", "replay gate"),
    Fault("the error of two independent means for the paired one", "evals/compare.py", "return pair.after - pair.before", "return pair.after - pair.before.mean()", T + "evals/test_compare.py"),
    # the gates themselves
    Fault("the gate looks the wrong way", "evals/gates.py", "if loss(found.delta, better) > limit:", "if loss(found.delta, better) < -limit:", T + "evals/test_gates.py::test_verdict"),
    Fault("min for max of floor and noise", "evals/gates.py", "limit = max(floor, z * se)", "limit = min(floor, z * se)", T + "evals/test_gates.py::test_verdict"),
    Fault("too few samples pass", "evals/gates.py", "if z * se > floor:", "if False:", T + "evals/test_gates.py::test_verdict"),
    Fault("a missing baseline passes", "visrl/regression/paired.py", 'yield from (Finding("paired", name, "fail", f"{error.message}', 'yield from (Finding("paired", name, "pass", f"{error.message}', T + "evals/test_gates.py::test_missing_baseline_cell_and_tampered_scores_fail"),
    Fault("unparsed samples unlimited", "visrl/regression/paired.py", "if count > most * total:", "if count > total:", T + "evals/test_gates.py::test_what_cannot_be_paired_fails_with_the_reason"),
    Fault("any judge will do", "evals/baselines.py", '"crop", "judge",', '"crop",', T + "evals/test_gates.py::test_another_judge_fails"),
    # runs, training
    Fault("DPO's sign", "visrl/train/dpo/losses.py", "beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)", "beta * (rejected - ref_rejected) - beta * (chosen - ref_chosen)", T + "train/test_train_losses.py"),
    Fault("λ swapped", "visrl/train/dpo/losses.py", 'scale = 1.0 if stage == 1 else lambda_box', 'scale = 1.0 if stage == 1 else lambda_answer', T + "train/test_train_losses.py"),
    Fault("β halved", "visrl/train/dpo/losses.py", "F.logsigmoid(beta * (chosen - ref_chosen) - beta *", "F.logsigmoid(0.5 * beta * (chosen - ref_chosen) - 0.5 * beta *", T + "train/test_train_losses.py"),
    Fault("a critic's threshold < for <=", "visrl/train/pairs/selection.py", "(score == lose and not strict)", "(score == lose and strict)", T + "train/test_selection.py"),
    Fault("the diversity controller off", "visrl/train/pairs/diversity.py", 'if controller == "none" or iou(first.box, second.box) <= MAX_IOU:', "if True:", T + "train/test_diversity.py"),
    Fault("a critic's silence is a zero", "visrl/train/critics/critics.py", "return Score(None, f\"no score in", "return Score(0.0, f\"no score in", T + "train/test_critics.py"),
    Fault("a silent losing answer refused", "visrl/train/dpo/stages.py", '(pair.sample.kind == "rec" and not pair.rejected.answer)', "not pair.rejected.answer", T + "train/test_train_phases.py::test_a_losing_chain_may_have_answered_nothing"),
    Fault("stage 2, resumed, starts from the recipe's model", "visrl/train/dpo/stages.py", "    if before is None:\n        return recipe.model", "    if True:\n        return recipe.model", T + "train/test_train_phases.py::test_stage_two_loaded_from_disk_starts_where_stage_one_ended"),
    Fault("a reference of other weights is read again", "visrl/train/dpo/reference_logprobs.py", '(weights is not None and about.get("weights") != weights)', "False", T + "train/test_train_phases.py::test_a_stored_reference_of_other_weights_is_not_read_again"),
    Fault("the reference of stage 2 is stage 1's", "visrl/train/dpo/stages.py", "trainer = StepDPOTrainer(trainable, collator, terms, args, folder, title=title)", 'trainer = StepDPOTrainer(trainable, collator, terms, args, recipe.output / "stage1", title=title)', T + "train/test_train_phases.py::test_the_reference_of_stage_two_is_the_end_of_stage_one_not_the_weights_on_disk"),
    Fault("no look at the first loss", "visrl/train/dpo/trainer.py", "if abs(first - LN2) > tolerance:", "if False:", T + "train/test_train_phases.py::test_a_reference_of_other_weights_is_noticed_at_the_first_step"),
    # the loop
    Fault("every iteration's pairs from M_SFT", "visrl/train/loop/phases.py", '_asked("policy", state.now, state.label', '_asked("policy", state.sft, state.label', T + "train/test_loop.py::test_each_phase_begins_where_the_one_before_ended_and_the_critic_stays_the_base"),
    Fault("the critic is the policy itself", "visrl/train/loop/phases.py", 'return state.sft if recipe.critic == "sft" else state.base', "return state.now", T + "train/test_loop.py::test_each_phase_begins_where_the_one_before_ended_and_the_critic_stays_the_base"),
    Fault("every stage starts from M_SFT", "visrl/train/loop/phases.py", '{**_model(state.now), "step.stages"', '{**_model(state.sft), "step.stages"', T + "train/test_loop.py::test_each_phase_begins_where_the_one_before_ended_and_the_critic_stays_the_base"),
    Fault("every iteration asks the same questions", "visrl/train/loop/phases.py", "data.skip + (phase.iteration - 1) * (data.limit or 0)", "data.skip", T + "train/test_loop.py::test_each_phase_begins_where_the_one_before_ended_and_the_critic_stays_the_base"),
    Fault("the adapter is forgotten when pairs are made", "visrl/train/loop/phases.py", "if weights.adapter is not None else {}", "if False else {}", T + "train/test_loop_models.py"),
    Fault("a phase is held against the base", "visrl/train/loop/run.py", "    return folder\n\n\ndef _score_config", "    return before or folder\n\n\ndef _score_config", T + "train/test_loop.py::test_each_phase_is_held_against_the_one_before_it"),
    Fault("weights changed on disk go unnoticed", "visrl/train/loop/phase_state.py", "if ended.get(name) != value]", "if name not in ended]", T + "train/test_loop.py::test_weights_or_pairs_or_data_that_changed_are_noticed"),
    Fault("a copied phase need not be the same", "visrl/train/loop/phase_state.py", "began is None or changes(began, json.loads(dump_json(dict(config))))", "began is None", T + "train/test_loop.py::test_a_phase_of_equal_hashes_is_copied_from_another_loop"),
    # estimates
    Fault("AdamW with one moment", "visrl/estimate/memory.py", "optimiser=2 * trained * shape.trained", "optimiser=trained * shape.trained", T + "estimate/test_estimate_commands.py::test_formulae_by_hand"),
    Fault("the reference's pass is not estimated", "visrl/estimate/training.py", "prefill=n * per_row if reference else 0", "prefill=0", T + "estimate/test_estimate_commands.py::test_a_recipe_is_estimated_by_its_command"),
    Fault("more GPUs save no time", "visrl/estimate/work.py", "return (computed + read) / gpus", "return computed + read", T + "estimate/test_estimate_commands.py::test_operations_and_hours_by_hand"),
    Fault("the answer turn is estimated without its cache", "visrl/estimate/lengths.py", "shared = known if known >= WORTH_RESUMING else 0", "shared = 0", T + "estimate/test_estimate_measured.py::test_evaluation"),
    # the command line, other policies, data
    Fault("--beside turned round", "visrl/cli/results/show.py", "compare(of_run(folder / second), of_run(folder))", "compare(of_run(folder), of_run(folder / second))", T + "test_cli.py::test_what_looking_changed"),
    Fault("--beside asks by the first protocol again", "visrl/cli/running.py", "replace(options, protocol=second, output=", "replace(options, output=", T + "test_cli.py::test_what_looking_changed"),
    Fault("a blinded model sees the crop", "visrl/policies/blind.py", "turns=tuple(map(_blanked, request.turns))", "turns=(_blanked(request.turns[0]), *request.turns[1:])", T + "policies/test_blind.py::test_every_picture_is_grey_and_keeps_its_size"),
    Fault("a server that is back does not get the adapter", "visrl/policies/servers/replicas.py", "            await self.make_ready(client)\n        except", "            await client.models.list()\n        except", T + "policies/test_servers.py::test_a_server_that_comes_back_gets_the_adapter_again"),
    Fault("a picture of the shard's first row group", "visrl/train/data/shards.py", "held = _pictures_of(shard, group)[number].as_py()", "held = _pictures_of(shard, 0)[number].as_py()", T + "train/test_train_shards.py::test_questions_of_several_shards_with_their_pictures"),
    # what only a model that looks can tell
    Fault("the crop shown is the whole picture", "visrl/rollout/steps.py", "lambda: picture.open().crop(region)", "picture.open", "paired gate"),
    Fault("the answer turn's positions begin anew", "visrl/policies/hf/decoding.py", "positions = [family.positions(chat)[..., n:] for chat, n in zip(chats, shared, strict=True)]", "positions = [family.positions(tail) for tail in tails]", "paired gate"),
    Fault("outputs in the order they were made", "visrl/policies/hf/policy.py", "            outputs[job.index] = output\n", "            outputs[outputs.index(None)] = output\n", "paired gate"),
    Fault("SFT continued sees the warm-up's examples again", "visrl/train/loop/phases.py", 'recipe.seed + CONTINUED_SEED if phase.what == "continued_sft"', 'recipe.seed if phase.what == "continued_sft"', T + "train/test_loop_faults.py::test_further_training_does_not_see_the_warm_ups_examples_again"),
    Fault("the hash of a critic forgets its adapter", "visrl/train/common/models.py", "return found if adapter is None else", "return found if True else", T + "train/test_loop_faults.py::test_with_an_adapter_the_two_critics_are_two"),
    Fault("a setting within a section replaces it", "visrl/train/loop/recipe.py", "dict(flat(found)) if isinstance(found, dict) else found", "found", T + "train/test_loop_faults.py::test_a_nested_setting_changes_one_value_and_not_a_section"),
    Fault("what is copied need not be what was left", "visrl/train/loop/phase_state.py", "if any(ended.get(name) != value for name, value in outputs_of(beside).items()):", "if False:", T + "train/test_loop_faults.py::test_what_is_copied_is_what_its_loop_says_it_left_and_what_is_being_scored_is_left_there"),
    Fault("features of a frozen tower in training mode", "visrl/train/common/vision_cache.py", "    model.eval()\n", "", T + "train/test_train_phases.py::test_features_do_not_depend_on_the_mode_of_the_model"),
    Fault("a judge that says nothing wipes the scores", "visrl/evaluation/rescore.py", "    _refuse_silence(folder, results, judge)\n", "", T + "test_cli.py::test_a_judge_that_cannot_be_reached_takes_no_scores_away"),
    Fault("a record that is there twice counts twice", "visrl/tables/claims.py", "[r.metric] = r.value or 0.0", '[r.metric + str(len(values[str(about["seed"])]))] = r.value or 0.0', T + "test_science.py::test_records_that_lack_a_warm_up_or_hold_a_seed_twice"),
    # the policy contract
    Fault("a blind model looks at another crop", "visrl/policies/blind.py", "self.default_protocol, self.default_crop = policy.default_protocol, policy.default_crop", "self.default_protocol = policy.default_protocol", T + "policies/test_blind.py::test_a_blind_model_looks_and_scores_as_the_model_itself"),
    Fault("the default crop is not the model's own", "visrl/rollout/config.py", "own = policy.default_crop if", 'own = "viscot_square112" if', "paired gate"),
    Fault("a server that is away costs its requests their tries", "visrl/policies/servers/endpoint.py", "attempts += not waits", "attempts += 1", T + "policies/test_outage.py::test_a_server_that_is_away_costs_no_tries"),
    Fault("a request that breaks connections is waited for like a server that is away", "visrl/policies/servers/endpoint.py", "if nobody_there(error) and await answers(self.server.urls, self._client):", "if False:", T + "policies/test_outage.py::test_one_request_that_brings_the_server_down_is_its_own_error"),
    Fault("a server that is gone fails sample by sample", "visrl/rollout/retry.py", "        policy.require_reachable()\n", "        pass\n", T + "policies/test_outage.py::test_after_the_patience_the_run_ends_and_what_is_finished_stays"),
    Fault("vLLM ends at a bracket that ends no box", "visrl/policies/servers/vllm.py", "return sampling.end_of(self._text.text(ids)) is None", "return False", T + "policies/test_vllm.py::test_a_stop_that_does_not_count_is_gone_beyond"),
    Fault("vLLM's share of an adapter passes for the whole", "visrl/policies/servers/vllm.py", "and not self.tower:", "and False:", T + "policies/test_vllm.py::test_adapters_are_exchanged_between_iterations_without_a_new_engine"),
    Fault("a failed request is not asked again", "visrl/rollout/retry.py", "for _ in range(RETRIES):", "for _ in range(0):", T + "test_rollout.py::test_a_request_that_fails_now_and_then_is_asked_again"),
    Fault("what is refused for good is asked again", "visrl/rollout/retry.py", "if output.error is not None and output.retry]", "if output.error is not None]", T + "test_rollout.py::test_what_is_decided_is_not_asked_again"),
    Fault("a job goes on whatever fails", "visrl/runs/job.py", "failed == fresh >= ABORT_AFTER_FAILURES", "failed == fresh >= 10**9", T + "train/test_pairs.py::test_a_server_that_is_down_stops_the_run_early"),
    # several looks
    Fault("a call within a thought is carried out", "visrl/core/looking/calls.py", "    said = outside_thoughts(text)\n    start = said.find(call.opening)\n", "    said = text\n    start = said.find(call.opening)\n", T + "test_tool_calls.py::test_what_a_turn_does"),
    Fault("a box of the last crop lies in the original", "visrl/core/looking/calls.py", "Box(x1 + box.x1 * across,", "Box(box.x1 * across,", T + "test_tool_calls.py::test_boxes_are_placed_in_the_original"),
    Fault("a faulty call is not counted as a look", "visrl/rollout/dialogue.py", "self.looks.append(Look(step, fault=fault.kind))", "pass", T + "test_several_looks.py::test_a_faulty_call_is_told_and_counts_as_a_look"),
    Fault("no turn is kept for the answer", "visrl/rollout/dialogue.py", "self.spent < 2 * tokens", "self.spent < tokens", T + "test_several_looks.py::test_the_limit_of_new_tokens"),
    Fault("V*Bench's options as its files list them", "tasks/zoom.py", "key=lambda option: hashlib", 'key=lambda option: "" and hashlib', T + "tasks/test_zoom_benchmarks.py::test_vstar_shuffles_what_its_files_list_right_first"),
    Fault("TreeBench's rule takes the first box", "evals/scorers/zoom/choice.py", "sum(max((iou(box, target) for box in boxes), default=0.0)", "sum(next((iou(box, target) for box in boxes), 0.0)", T + "tasks/test_zoom_benchmarks.py::test_the_rule_of_treebench"),
    # incomplete runs, directions, comparisons
    Fault("a run with failed samples becomes a baseline", "evals/baselines.py", "if worst.n_unscored:", "if False:", T + "evals/test_paired_gates.py::test_a_run_with_failed_samples_is_no_baseline_unless_that_is_said"),
    Fault("samples without a value in one run pass", "evals/gates.py", "if found.unpaired > max_unpaired * (found.n + found.unpaired):", "if False:", T + "evals/test_gate_rules.py::test_unpaired_samples_beyond_the_limit_do_not_pass_and_hide_no_drop"),
    Fault("more yes is no change", "evals/compare.py", "return abs(delta)", "return -delta", T + "evals/test_gate_rules.py::test_a_loss_is_a_drop_a_rise_or_any_change"),
    Fault("a rise of what should be low is for the better", "evals/compare.py", 'return -delta if better == "more" else delta', "return -delta", T + "evals/test_gate_rules.py::test_a_loss_is_a_drop_a_rise_or_any_change"),
    Fault("runs on other documents are compared", "visrl/regression/comparisons.py", "if unlike := unlike_documents(", "if unlike := not unlike_documents and unlike_documents(", T + "test_api.py::test_runs_on_other_documents_are_not_compared_here_either"),
]  # fmt: skip
SMOKE = (">= for > at IoU 0.5", "the padded square's offset off by one", "the cluster key lost")
"""Those that the default test run seeds: the replay gate alone, about two seconds each."""
