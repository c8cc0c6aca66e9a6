# The papers' systems end to end on a GPU node: the corpus, pretraining, distillation, and nine tasks with seeds beside the
# papers' rows. A stage is done when its export is there, and one that was cut off goes on from its last checkpoint.
#   make paper-distilbert DRY=1 DEVICES=8 GPU=H100     # the commands, hours and memory; nothing runs
#   make paper-distilbert DEVICES=8 TEACHER=own        # with a BERT pretrained here in place of the published one

PAPERS ?= runs/papers
DEVICES ?= 8
GPU ?= H100
# the teacher: empty for the published one, `own` for the one that this file pretrains, or a folder
TEACHER ?=
# a source of documents, as YAML
CORPUS ?= {"class_path": "lit_distil.data.HubDataset", "init_args": {"name": "wikimedia/wikipedia", "config": "20231101.en", \
	"splits": {"train": "train[:-50000]", "validation": "train[-50000:]"}, "text_column": "text"}}
# where the tokenizer comes from, and the published teacher
PUBLISHED_bert ?= google-bert/bert-base-uncased
PUBLISHED_roberta ?= FacebookAI/roberta-base
# more options of `fit`; ARGS are those of the tasks
PRETRAIN_ARGS ?=
DISTIL_ARGS ?=

# with DRY, commands are printed in place of being run, as a shell would read them
LIT_DISTIL := $(RUN)
ifdef DRY
override RUN := bash -c 'printf "%q " "$$@"; echo' - lit-distil
endif

PAPER_NAMES := bert roberta distilbert distilroberta
paper_export = $(PAPERS)/$(1)/export/config.json
# $(call paper_fit,name,recipe,family,options)
paper_fit = $(RUN) fit --config configs/$(2).yaml --config configs/trainer/ddp.yaml --trainer.devices $(DEVICES) \
	--data.tokenizer $(PUBLISHED_$(3)) --data.source lit_distil.data.PreparedCorpus --data.source.folder $(PAPERS)/corpus/$(3) \
	$(4) --trainer.default_root_dir $(PAPERS)/$(1) \
	$$(test -f $(PAPERS)/$(1)/checkpoints/last.ckpt && echo --ckpt_path last || echo --overwrite)
paper_teacher = $(if $(filter own,$(TEACHER)),$(PAPERS)/$*/export,$(or $(TEACHER),$(PUBLISHED_$*)))

.PHONY: paper-bert paper-roberta paper-distilbert paper-distilroberta
paper-bert:  ## BERT base: corpus, pretraining, GLUE with seeds (DRY=1: the commands, hours and memory)
paper-roberta:  ## the same for RoBERTa base
paper-distilbert:  ## the same for DistilBERT, from the published BERT (TEACHER=own: from yours)
paper-distilroberta:  ## the same for DistilRoBERTa
$(PAPER_NAMES:%=paper-%): paper-%: | $(VENV)/.core
	@set -o pipefail; $(MAKE) -s --no-print-directory chain-$* \
		$(if $(DRY),| $(LIT_DISTIL) benchmark estimate --commands - --gpu $(GPU))

$(PAPER_NAMES:%=chain-%): chain-%: $(PAPERS)/%/export/config.json
	@$(MAKE) -s --no-print-directory glue MODEL=$(PAPERS)/$*/export GLUE_RUNS=$(PAPERS)/glue/$* SEEDS='$(or $(SEEDS),1 2 3 4 5)'

$(PAPERS)/corpus/bert/done $(PAPERS)/corpus/roberta/done: $(PAPERS)/corpus/%/done: | $(VENV)/.core
	@$(RUN) prepare --source '$(CORPUS)' --tokenizer $(PUBLISHED_$*) --out $(@D) $(if $(DRY),,&& touch $@)

$(call paper_export,bert) $(call paper_export,roberta): $(PAPERS)/%/export/config.json: $(PAPERS)/corpus/%/done
	@$(call paper_fit,$*,pretrain/$*,$*,$(PRETRAIN_ARGS))

$(call paper_export,distilbert) $(call paper_export,distilroberta): $(PAPERS)/distil%/export/config.json: \
		$(PAPERS)/corpus/%/done $(if $(filter own,$(TEACHER)),$(PAPERS)/%/export/config.json)
	@$(call paper_fit,distil$*,distill/distil$*,$*,--model.teacher $(paper_teacher) $(DISTIL_ARGS))
