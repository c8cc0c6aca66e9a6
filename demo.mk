# The demo as files: a stage is done when its export is there. A stage that was cut off continues from its last checkpoint,
# and one that is done is not repeated. Students and tasks run two at a time, with one thread each.

DEMO := runs/demo
FIT := $(RUN) fit
STUDENTS := student-soft student-mlm student-hard student-random student-mlm-time
DEMO_TASKS := task-teacher task-soft task-mlm task-hard task-unpretrained

# $(call resume,stage): go on from the stage's last checkpoint, or start again if it has none
resume = $$(test -f $(DEMO)/$(1)/checkpoints/last.ckpt && echo --ckpt_path last || echo --overwrite)
exports = $(foreach stage,$(1),$(DEMO)/$(stage)/export/config.json)
# $(call fit,stage,arguments): a stage whose output goes to its log, and to the screen if it fails
fit = mkdir -p $(DEMO)/$(1) && $(FIT) $(2) --trainer.default_root_dir $(DEMO)/$(1) $(call resume,$(1))

.PHONY: demo demo-students demo-tasks
demo: $(VENV)/.core  ## the whole chain on the docstrings of the installed packages (6 to 12 minutes on two cores)
	@$(MAKE) -s --no-print-directory $(DEMO)/teacher/export/config.json
	@OMP_NUM_THREADS=$(THREADS) $(MAKE) -s --no-print-directory -j2 demo-students demo-tasks
	@$(MAKE) -s --no-print-directory $(DEMO)/report/report.md
	@echo "the table and the picture: $(DEMO)/report/report.html"

demo-students: $(call exports,$(STUDENTS))
demo-tasks: $(call exports,$(DEMO_TASKS))

$(DEMO)/tokenizer/tokenizer.json: | $(VENV)/.core
	@echo "== tokenizer: byte-level BPE of 4,096 entries on the docstrings of the installed packages"
	@$(RUN) tokenizer --source lit_distil.data.Docstrings --vocab_size 4096 --out $(@D)

$(DEMO)/teacher/export/config.json: $(DEMO)/tokenizer/tokenizer.json
	@echo "== teacher: 6 layers, masked-LM, dynamic masking, full sentences"
	@$(call fit,teacher,--config configs/demo/teacher.yaml)

$(DEMO)/student-soft/export/config.json: $(DEMO)/teacher/export/config.json
	@echo "== student: 3 of the teacher's layers, its soft targets"
	@$(call fit,student-soft,--config configs/demo/student.yaml)

$(DEMO)/student-mlm/export/config.json: $(DEMO)/teacher/export/config.json
	@echo "== control: the same student without a teacher, for as many steps"
	@$(call fit,student-mlm,--config configs/demo/student.yaml --model.objectives '$(MASKED_LM_ONLY)')

$(DEMO)/student-mlm-time/export/config.json: $(call exports,student-soft student-mlm)
	@echo "== control: the same student without a teacher, for as long"
	@$(RUN) report $(DEMO)/student-soft $(DEMO)/student-mlm --out $(DEMO)/equal-time > /dev/null
	@$(call fit,student-mlm-time,--config configs/demo/student.yaml --model.objectives '$(MASKED_LM_ONLY)' \
		--trainer.max_steps $$($(EQUAL_TIME_STEPS)))

$(DEMO)/student-hard/export/config.json: $(DEMO)/teacher/export/config.json
	@echo "== control: the same student on the teacher's hard labels"
	@$(call fit,student-hard,--config configs/demo/student.yaml $(HARD_LABELS))

$(DEMO)/student-random/export/config.json: $(DEMO)/teacher/export/config.json
	@echo "== control: soft targets from random weights"
	@$(call fit,student-random,--config configs/demo/student.yaml --model.student lit_distil.models.RandomWeights \
		--model.student.num_layers 3)

# the steps that student-mlm could do in the time of student-soft
EQUAL_TIME_STEPS := $(BIN)/python -c 'import json; \
	print(json.load(open("$(DEMO)/equal-time/report.json"))["runs"][1]["steps_in_first_runs_time"])'
MASKED_LM_ONLY := {"masked_lm": {"class_path": "lit_distil.objectives.MaskedLMLoss"}}
HARD_LABELS := --model.objectives.soft lit_distil.objectives.TeacherLabelLoss --model.objectives.soft.weight 5.0

# $(call task,stage,arguments)
task = echo "== task: do the words stand in their order ($(1))" && $(call fit,$(1),--config configs/demo/task.yaml $(2))

$(DEMO)/task-teacher/export/config.json: $(DEMO)/teacher/export/config.json
	@$(call task,task-teacher)

$(DEMO)/task-soft/export/config.json: $(DEMO)/student-soft/export/config.json
	@$(call task,task-soft,--model.network.name_or_path $(DEMO)/student-soft/export)

$(DEMO)/task-mlm/export/config.json: $(DEMO)/student-mlm/export/config.json
	@$(call task,task-mlm,--model.network.name_or_path $(DEMO)/student-mlm/export)

$(DEMO)/task-hard/export/config.json: $(DEMO)/student-hard/export/config.json
	@$(call task,task-hard,--model.network.name_or_path $(DEMO)/student-hard/export)

$(DEMO)/task-unpretrained/export/config.json: $(DEMO)/tokenizer/tokenizer.json
	@$(call task,task-unpretrained,--config configs/demo/unpretrained.yaml)

$(DEMO)/report/report.md: $(call exports,teacher $(STUDENTS) $(DEMO_TASKS)) configs/demo/report.yaml
	@echo "== report"
	@OMP_NUM_THREADS=2 $(RUN) report --config configs/demo/report.yaml

# The demo's main comparison with more seeds: how much of a difference is the seed's

KINDS := student-soft student-mlm student-hard
DEMO_SEEDS = $(or $(SEEDS),2 3)
SEED_RUNS = $(foreach kind,$(KINDS),$(foreach seed,$(DEMO_SEEDS),$(kind)-seed$(seed)))

.PHONY: demo-seeds
demo-seeds: $(VENV)/.core  ## soft targets, no teacher and hard labels with two more seeds: intervals for the demo's table
	@$(MAKE) -s --no-print-directory $(call exports,teacher $(KINDS))
	@OMP_NUM_THREADS=$(THREADS) $(MAKE) -s --no-print-directory -j2 $(call exports,$(SEED_RUNS))
	@$(RUN) report $(addprefix $(DEMO)/,$(KINDS) $(SEED_RUNS)) --metrics val/masked_lm_loss --out $(DEMO)/seeds

$(DEMO)/student-soft-seed%/export/config.json: $(DEMO)/teacher/export/config.json
	@echo "== student, soft targets, seed $*"
	@$(call fit,student-soft-seed$*,--config configs/demo/student.yaml --seed_everything $*)

$(DEMO)/student-mlm-seed%/export/config.json: $(DEMO)/teacher/export/config.json
	@echo "== student, no teacher, seed $*"
	@$(call fit,student-mlm-seed$*,--config configs/demo/student.yaml --seed_everything $* --model.objectives '$(MASKED_LM_ONLY)')

$(DEMO)/student-hard-seed%/export/config.json: $(DEMO)/teacher/export/config.json
	@echo "== student, teacher's hard labels, seed $*"
	@$(call fit,student-hard-seed$*,--config configs/demo/student.yaml --seed_everything $* $(HARD_LABELS))

# The same with a real network: half of all-MiniLM-L6-v2, on short texts of REAL_DATA, measured on STS-B and XQuAD, of which it
# sees no text. Training takes 15 minutes of one core; MRPC is left out, since STS-B has sentences of it.

REAL := runs/demo-real
REAL_DATA ?=
comma := ,
real_files = [$(subst $() ,$(comma),$(foreach name,$(1),"$(REAL_DATA)/$(name)"))]
# $(call real_source,class,files,validation file,other arguments)
real_source = {"class_path": "lit_distil.data.$(1)", "init_args": {"train": $(call real_files,$(2)), \
	"validation": $(call real_files,$(3))$(4)}}
real_rows = $(call real_source,TableFiles,$(foreach task,$(1),finetune/$(task)/train.jsonl),finetune/$(firstword $(1))/validation.jsonl,$(comma) "text_column": "$(2)")
REAL_PROSE := $(addprefix pretrain/,small/train.sents.txt wikitext2/wiki.valid.detok.txt wikitext2/wiki.test.detok.txt)
REAL_SOURCE = {"class_path": "lit_distil.data.Mixture", "init_args": {"sources": { \
	"prose": {"class_path": "lit_distil.data.Sentences", "init_args": {"language": "en", "source": \
		$(call real_source,TextFiles,$(REAL_PROSE),pretrain/small/valid.sents.txt)}}, \
	"texts": $(call real_rows,sst2 cola trec ag_news_7600,sentence), \
	"first": $(call real_rows,rte,sentence1), "second": $(call real_rows,rte,sentence2)}}}

.PHONY: demo-real
demo-real: runs/minilm/config.json  ## a real sentence encoder, halved and measured (REAL_DATA=folder of texts and test sets)
	@test -d "$(REAL_DATA)/pretrain" || { echo "give the folder of data, with pretrain/, finetune/stsb/ and qa/xquad_en/: make demo-real REAL_DATA=folder" >&2; exit 2; }
	@$(MAKE) -s --no-print-directory $(REAL)/student/export/config.json
	@$(RUN) embeddings --model [runs/minilm,$(REAL)/student/export] --pairs $(REAL_DATA)/finetune/stsb/test.jsonl \
		--questions $(REAL_DATA)/qa/xquad_en/validation.json --out $(REAL)/report
	@$(RUN) benchmark --networks [runs/minilm,$(REAL)/student/export] --length 32 --out $(REAL)/report

$(REAL)/student/export/config.json: runs/minilm/config.json
	@echo "== student: layers 1, 3 and 5 of 6, 1 - cosine of the embeddings"
	@OMP_NUM_THREADS=$(THREADS) $(FIT) --config configs/distill/sentence-encoder.yaml \
		--model.teacher runs/minilm --data.tokenizer runs/minilm --data.source '$(REAL_SOURCE)' --trainer.default_root_dir $(@D:/export=) \
		$$(test -f $(@D:/export=)/checkpoints/last.ckpt && echo --ckpt_path last || echo --overwrite)
